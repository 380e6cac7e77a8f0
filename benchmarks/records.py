"""What a run leaves behind: CSV rows in Liger's columns, and the machine they came from.

One row a figure: `y_value_50/20/80` are the median and the 20th and 80th percentile (all equal
where there is one figure). Metrics: time_ms, speedup_over_inductor, speedup_over_eager,
time_over_sdpa, error, compile_s, peak_mb, largest_mb, rewrites, failure.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.providers import EAGER, INDUCTOR, SDPA
from benchmarks.runner import THREADS, Result, spread
from fuser.torch_private import multiplies_in_hardware

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One line of the CSV; the field names are its header."""

    kernel_name: str
    provider: str
    mode: str
    metric: str
    x_name: str
    x_value: int
    y_value_50: float
    y_value_20: float
    y_value_80: float
    extra_config: str
    gpu_name: str
    version: str


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Row))


def make_row(
    kernel_name: str,
    provider: str,
    mode: str,
    metric: str,
    x: tuple[str, int],
    y: float | tuple[float, float, float],
    config: Mapping[str, object],
    device: torch.device,
) -> Row:
    """A row; `y` is one figure or (p20, median, p80)."""
    low, middle, high = y if isinstance(y, tuple) else (y, y, y)
    extra = json.dumps(dict(config), sort_keys=True)
    place = (*x, middle, low, high, extra, device_name(device), versions())
    return Row(kernel_name, provider, mode, metric, *place)


def rows(result: Result, device: torch.device) -> list[Row]:
    """Everything that was measured of one workload."""
    work, dtype = result.workload, str(result.dtype).removeprefix("torch.")
    found: list[Row] = []
    for name, measure in result.measures.items():
        figures: dict[str, float | tuple[float, float, float]] = {}
        config: dict[str, object] = {"dtype": dtype, **work.config}
        if measure.failure is not None:
            figures["failure"] = 1.0
            config["failure"] = measure.failure
        if measure.times_ms:
            figures["time_ms"] = spread(measure.times_ms)
        comparisons = (
            ("speedup_over_inductor", INDUCTOR, name),
            ("speedup_over_eager", EAGER, name),
            ("time_over_sdpa", name, SDPA),
        )
        for metric, slow, fast in comparisons:
            ratio = result.ratio(slow, fast)
            if ratio is not None and slow != fast and name != SDPA:
                figures[metric] = ratio
        for metric in ("error", "compile_s", "peak_mb", "largest_mb"):
            value = getattr(measure, metric)
            if value is not None:
                figures[metric] = float(value)
        if measure.rewrites:
            figures["rewrites"] = float(sum(measure.rewrites.values()))
            config["rewrites"] = measure.rewrites
        kernel = f"{work.family}.{work.name}"
        found += [
            make_row(kernel, name, result.mode, metric, work.x, y, config, device)
            for metric, y in figures.items()
        ]
    return found


def write_csv(path: Path, lines: Iterable[Row]) -> None:
    """Writes all rows, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)


def write_machine(path: Path, command: Sequence[str], load_before: float) -> None:
    """Writes the machine and the circumstances beside a CSV, as `<name>.machine.json`."""
    note = describe_machine() | {
        "command": " ".join(command),
        "load_average_before": round(load_before, 2),
        "load_average_after": round(os.getloadavg()[0], 2),
    }
    path.with_suffix(".machine.json").write_text(json.dumps(note, indent=2) + "\n")


def describe_machine() -> dict[str, object]:
    """Processor, memory, compiler and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, object] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "multiplies_bfloat16": multiplies_in_hardware(torch.bfloat16),
        "cores": os.cpu_count(),
        "torch_threads": THREADS,
        "memory_gib": round(memory / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "compiler": _output(os.environ.get("CXX", "g++"), "--version"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "versions": versions(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def device_name(device: torch.device) -> str:
    """What `gpu_name` holds: the GPU, or the processor and its core count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} ({os.cpu_count()} cores)"


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def versions() -> str:
    """torch, triton, transformers and fuser, those that are installed."""
    parts: list[str] = []
    for package in ("torch", "triton", "transformers", "torch-fuser"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def _output(*command: str) -> str:
    """First line that a command prints; empty where it cannot be run."""
    where = Path(__file__).parent
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=where)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.partition("\n")[0]
