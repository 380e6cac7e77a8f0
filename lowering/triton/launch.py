"""Running a generated kernel: on the GPU, in a graph that is being compiled, or interpreted."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuser import printed
from fuser.inductor_private import packaging
from fuser.tools_private import is_profiled, named_range
from fuser.torch_private import known_true

from .kernel import Kernel


@dataclass(frozen=True)
class Target:
    """What the rule knows of a device.

    Attributes:
        arch: `sm_90`, `gfx942`, or `interpreter`.
        processors: streaming multiprocessors, or compute units.
        shared: bytes of shared memory that one program may have.
        lanes: threads in a warp.
        tma: it loads tiles by descriptors.
        warp_specialize: Triton's compiler can give its warps tasks of their own.
    """

    arch: str
    processors: int
    shared: int
    lanes: int = 32
    tma: bool = False
    warp_specialize: bool = False


INTERPRETED_WORK = 1000.0
"""Of a lowering in the interpreter, which is for numbers and not for time."""
INTERPRETER = Target("interpreter", 4, 1 << 20)
TARGETS = {
    target.arch: target
    for target in (
        Target("sm_80", 108, 163 << 10), Target("sm_90", 132, 227 << 10, tma=True),
        Target("sm_100", 148, 227 << 10, tma=True, warp_specialize=True),
        Target("gfx942", 304, 64 << 10, 64),
    )
}  # fmt: skip
"""What kernels are compiled for where no such device is at hand."""


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, in this process."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def unavailable(device: torch.device) -> str:
    """Why generated kernels do not run on a device, in plain words; else empty."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        return "" if interpreting() else "on a CPU it needs TRITON_INTERPRET=1 in the environment"
    if packaging():
        return "AOTInductor packages none of its kernels yet"
    return "" if device.type == "cuda" else f"it knows GPUs of CUDA and ROCm, not {device.type!r}"


def target_of(device: torch.device) -> Target:
    """What the rules know of a device."""
    if device.type == "cpu":
        return INTERPRETER
    found = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch = found.gcnArchName.partition(":")[0]
    else:
        arch = f"sm_{found.major}{found.minor}"
    shared, nvidia = found.shared_memory_per_block_optin, not torch.version.hip
    return Target(
        arch, found.multi_processor_count, shared, found.warp_size,
        tma=nvidia and found.major >= 9, warp_specialize=arch == "sm_100",
    )  # fmt: skip


def describable(x: torch.Tensor) -> bool:
    """Whether the hardware takes a descriptor of a tensor: what is along the last dimension beside
    each other, and the rest at multiples of 16 bytes, as far as that is known of symbols."""
    aligned = [x.storage_offset(), *x.stride()[:-1]]
    whole = all(known_true(n * x.itemsize % 16 == 0) for n in aligned)
    return whole and known_true(x.stride(-1) == 1)


def run(
    kernel: Kernel, grid: tuple[int, ...], values: Mapping[str, Any], scratch_on: Any = None
) -> None:
    """Launches a kernel; on the device `scratch_on`, Triton makes descriptors in memory of ours."""
    printed.note(kernel.name, kernel.source)
    with _range(kernel):
        _launch(kernel, grid, values, scratch_on)


def _range(kernel: Kernel) -> contextlib.AbstractContextManager[Any]:
    """A name in profiles, `fuser: attention.softmax at model.py:12, forward_kernel`, where a
    profiler is on."""
    if not is_profiled():
        return contextlib.nullcontext()
    origin = printed.origin_of(kernel.source)
    return named_range(f"fuser: {origin}, {kernel.name}" if origin else f"fuser: {kernel.name}")


def _launch(
    kernel: Kernel, grid: tuple[int, ...], values: Mapping[str, Any], scratch_on: Any
) -> None:
    function = kernel.function()
    names = [name for name, _ in kernel.signature]
    arguments = {name: values[name] for name in names}
    options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}
    if interpreting():
        import numpy

        with numpy.errstate(all="ignore"):
            function[grid](**arguments, **dict(kernel.constants))
        return
    from torch.library import wrap_triton

    if scratch_on is not None:
        import triton

        triton.set_allocator(
            lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=scratch_on)
        )
    wrap_triton(function)[grid](**arguments, **dict(kernel.constants), **options)
