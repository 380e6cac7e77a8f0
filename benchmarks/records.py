"""What a run leaves behind: CSV rows in Liger's columns, and the machine they came from.

One row a figure: `y_value_50/20/80` are the median and the 20th and 80th percentile (all equal
where there is one figure). Metrics: time_ms, speedup_over_inductor, speedup_over_eager,
speedup_over_best_peer (ours, where the work is known), time_over_sdpa, share_of_limit, error,
compile_s, warm_s, peak_mb, largest_mb, rewrites, failure.
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

from benchmarks.devices import Device, cpu_name
from benchmarks.figures import Result, Spread, spread
from benchmarks.providers import EAGER, INDUCTOR, OURS, SDPA
from benchmarks.runner import THREADS
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
    y: float | Spread,
    config: Mapping[str, object],
    device: Device,
) -> Row:
    """A row; `y` is one figure or (p20, median, p80)."""
    low, middle, high = y if isinstance(y, tuple) else (y, y, y)
    extra = json.dumps(dict(config), sort_keys=True)
    place = (*x, middle, low, high, extra, device.name, versions())
    return Row(kernel_name, provider, mode, metric, *place)


def rows(result: Result, device: Device) -> list[Row]:
    """Everything that was measured of one workload."""
    work, dtype = result.workload, str(result.dtype).removeprefix("torch.")
    found: list[Row] = []
    for name, measure in result.measures.items():
        config: dict[str, object] = {"dtype": dtype, **work.config}
        if measure.failure is not None:
            config["failure"] = measure.failure
        if measure.rewrites:
            config["rewrites"] = measure.rewrites
        limit = result.limit_ms(device.rates)
        if limit is not None:
            config |= {"limit_ms": round(limit, 6), "cuda_graphs": device.graphs}
        kernel = f"{work.family}.{work.name}"
        found += [
            make_row(kernel, name, result.mode, metric, work.x, y, config, device)
            for metric, y in _figures(result, name, device).items()
        ]
    return found


def _figures(result: Result, name: str, device: Device) -> dict[str, float | Spread]:
    """Figures of one provider by metric."""
    measure = result.measures[name]
    found: dict[str, float | Spread] = {}
    if measure.failure is not None:
        found["failure"] = 1.0
    if measure.times_ms:
        found["time_ms"] = spread(measure.times_ms)
    found |= {m: y for m, y in _comparisons(result, name).items() if y is not None}
    share = result.share_of_limit(name, device.rates)
    if share is not None:
        found["share_of_limit"] = share
    for metric in ("error", "compile_s", "warm_s", "peak_mb", "largest_mb"):
        value = getattr(measure, metric)
        if value is not None:
            found[metric] = float(value)
    if measure.rewrites:
        found["rewrites"] = float(sum(measure.rewrites.values()))
    return found


def _comparisons(result: Result, name: str) -> dict[str, Spread | None]:
    """Ratios to the others; a provider is not compared with itself, nor a yardstick with any."""
    if result.measures[name].yardstick:
        return {}
    found: dict[str, Spread | None] = {}
    if name != INDUCTOR:
        found["speedup_over_inductor"] = result.ratio(INDUCTOR, name)
    if name != EAGER:
        found["speedup_over_eager"] = result.ratio(EAGER, name)
    if name in OURS and result.workload.work is not None and (best := result.best_peer()):
        found["speedup_over_best_peer"] = result.ratio(best, name)
    if name != SDPA:
        found["time_over_sdpa"] = result.ratio(name, SDPA)
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
