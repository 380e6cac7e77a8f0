"""What devices can do at the most: known ones by their makers, this one by a short measurement.

Rates of known devices are peaks for dense matrices as their makers give them, which no program
reaches; what is said of them is a prediction of the least time.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import measure
from ..errors import UnknownArchitectureError
from .work import Rates, measured_rates

_COPIED_BYTES = 128 << 20
"""More than the last cache of most processors holds."""
_LAUNCHES = 500


@dataclass(frozen=True)
class Machine:
    """A device, and what it can do in a second.

    Attributes:
        name: for people.
        bytes: to and from memory.
        flops: by dtype.
        launch: seconds that one operator costs whatever it computes.
        arch: one of `lowering.triton.devices.DEVICES`; empty where there is none.
        predicted: nothing was measured on it.
    """

    name: str
    bytes: float
    flops: Mapping[str, float]
    launch: float
    arch: str = ""
    predicted: bool = False

    def rates(self, dtype: torch.dtype) -> Rates:
        """For a dtype; for one that was not measured, those of fp32."""
        name = str(dtype).removeprefix("torch.")
        return Rates(self.bytes, self.flops.get(name, self.flops["float32"]))

    def to_json(self) -> dict[str, Any]:
        """`{name, bytes_per_s, flops_per_s: {dtype: ...}, launch_s, predicted}`."""
        return {
            "name": self.name,
            "bytes_per_s": self.bytes,
            "flops_per_s": dict(self.flops),
            "launch_s": self.launch,
            "predicted": self.predicted,
        }


def _gpu(name: str, arch: str, half: float, single: float, memory: float) -> Machine:
    """Tera-operations in half precision and in fp32, and terabytes, a second."""
    flops = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return Machine(name, memory * 1e12, flops, 4e-6, arch, predicted=True)


KNOWN: dict[str, Machine] = {
    # NVIDIA A100 80GB SXM data sheet: 312 TFLOPS, 19.5 in fp32, 2.039 TB/s.
    "a100": _gpu("NVIDIA A100", "sm_80", 312, 19.5, 2.039),
    # NVIDIA H100 SXM data sheet: 989 TFLOPS (1,979 with sparsity), 67 in fp32, 3.35 TB/s.
    "h100": _gpu("NVIDIA H100", "sm_90", 989, 67, 3.35),
    # NVIDIA H200 SXM data sheet: as H100, 4.8 TB/s.
    "h200": _gpu("NVIDIA H200", "sm_90", 989, 67, 4.8),
    # NVIDIA HGX B200 data sheet, an eighth: 2.25 PFLOPS, 75 TFLOPS in fp32, 7.7 TB/s.
    "b200": _gpu("NVIDIA B200", "sm_100", 2250, 75, 7.7),
    # AMD Instinct MI300X data sheet: 1,307.4 TFLOPS, 163.4 in fp32, 5.3 TB/s.
    "mi300x": _gpu("AMD MI300X", "gfx942", 1307.4, 163.4, 5.3),
}
"""Half precision of dense matrices; fp32 without tensor cores, as PyTorch multiplies by default.
A launch costs some 4 µs wherever a host has to ask for each kernel."""
ARCHITECTURES = {"sm_80": "a100", "sm_90": "h200", "sm_100": "b200", "gfx942": "mi300x"}
"""Which device is meant where only its architecture is said."""


def known(target: str) -> Machine:
    """A device by its name or architecture.

    Raises:
        UnknownArchitectureError: there is none.
    """
    name = ARCHITECTURES.get(target.lower(), target.lower())
    if name not in KNOWN:
        raise UnknownArchitectureError(target, [*KNOWN, *ARCHITECTURES])
    return KNOWN[name]


def this_machine(device: torch.device) -> Machine:
    """What this machine can do: measured once, and kept on disk for this processor and torch."""
    name = measure.device_name(device) if device.type == "cuda" else cpu_name()
    key = {
        "what": "rates of the machine",
        "device": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "torch": str(torch.__version__),
    }
    found = measure.recall(key)
    if found is None:
        found = _calibrated(device)
        measure.remember(key, found)
    return Machine(name, found["bytes"], found["flops"], found["launch"])


def _calibrated(device: torch.device) -> dict[str, Any]:
    side, rounds = (8192, 9) if device.type == "cuda" else (1024, 3)

    def timed_ms(call: Callable[[], object]) -> float:
        measure.finish(device)
        start = time.perf_counter()
        call()
        measure.finish(device)
        return (time.perf_counter() - start) * 1e3

    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        rates = {
            dtype: measured_rates(
                timed_ms,
                device,
                dtype=dtype,
                side=side,
                copied=_COPIED_BYTES // dtype.itemsize,
                rounds=rounds,
            )
            for dtype in (torch.float32, torch.bfloat16)
        }
        small = torch.zeros(1, device=device)
        launched = timed_ms(lambda: [small.add_(1) for _ in range(_LAUNCHES)]) / 1e3 / _LAUNCHES
    flops = {str(d).removeprefix("torch."): r.flops for d, r in rates.items()}
    if device.type == "cuda":
        flops["float16"] = flops["bfloat16"]
    return {
        "bytes": max(r.bytes for r in rates.values()),
        "flops": flops,
        "launch": launched,
    }


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
