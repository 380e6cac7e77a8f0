"""Kernels compiled with no GPU present: what they take, what goes wrong, and what it allows."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fuser.errors import InterpreterModeError, UnknownArchitectureError
from fuser.lowering.triton.aot import Failure, Resources, compile_kernel
from fuser.lowering.triton.devices import DEVICES, occupancy
from fuser.lowering.triton.kernel import Kernel
from fuser.lowering.triton.pool import compile_all

HEAD = "import os\n\nimport triton\nimport triton.language as tl\n\n\n@triton.jit\n"
FLASH = (
    HEAD
    + """
def flash(q, k, v, out, stride, keys, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    d = tl.arange(0, D)
    rows = (tl.program_id(0) * M + tl.arange(0, M))[:, None] * stride + d[None, :]
    q = tl.load(q + rows)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    summed = tl.zeros([M, D], tl.float32)
    for start in range(0, keys, N):
        n = start + tl.arange(0, N)
        s = tl.dot(q, tl.load(k + n[None, :] * stride + d[:, None]))
        higher = tl.maximum(top, tl.max(s, 1))
        p, shrink = tl.exp(s - higher[:, None]), tl.exp(top - higher)
        total = total * shrink + tl.sum(p, 1)
        values = tl.load(v + n[:, None] * stride + d[None, :])
        summed = summed * shrink[:, None] + tl.dot(p.to(values.dtype), values)
        top = higher
    tl.store(out + rows, (summed / total[:, None]).to(out.dtype.element_ty))
"""
)
POINTWISE = (
    HEAD
    + """
def pointwise(x, out, size, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i, i < size, 0.0) * 2.0, i < size)
"""
)
SINE = (
    HEAD
    + """
def sine(x, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.sin(tl.load(x + i)))
"""
)
WIDE = (
    HEAD
    + """
def wide(x, out, steps, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    first = tl.load(x + i)
    sums = first
    for step in range(steps):
        sums = sums * tl.load(x + step) + tl.load(x + i + step * SIZE)
        sums += tl.sum(sums * first)
    tl.store(out + i, sums + first)
"""
)
WRONG = HEAD + "def wrong(x, out):\n    tl.store(out, no_such_name(x))\n"
CRASHING = HEAD + "def crashing(x, out):\n    pass\n\n\nos._exit(3)\n"
PAIR = (("x", "*fp32"), ("out", "*fp32"))


def flash(block: int, warps: int, stages: int) -> Kernel:
    pointers = tuple((name, "*bf16") for name in ("q", "k", "v", "out"))
    numbers = (("stride", "i32"), ("keys", "i32"))
    constants = (("M", block), ("N", block), ("D", block))
    divisible = frozenset(name for name, _ in (*pointers, *numbers))
    return Kernel("flash", FLASH, (*pointers, *numbers), constants, divisible, warps, stages)


def one_dimensional(name: str, source: str, size: int, warps: int, *more: str) -> Kernel:
    signature = (*PAIR, *((argument, "i32") for argument in more))
    return Kernel(name, source, signature, (("SIZE", size),), frozenset({"x", "out"}), warps)


KERNELS = {
    "flash": flash(64, 4, 2),
    "over": flash(128, 8, 6),
    "pointwise": one_dimensional("pointwise", POINTWISE, 1024, 4, "size"),
    "sine": one_dimensional("sine", SINE, 1024, 4),
    "wide": one_dimensional("wide", WIDE, 4096, 1, "steps"),
    "wider": one_dimensional("wide", WIDE, 16384, 1, "steps"),
    "wrong": Kernel("wrong", WRONG, PAIR),
    "crashing": Kernel("crashing", CRASHING, PAIR),
    "unfinished": Kernel("pointwise", POINTWISE, PAIR),
}
NVIDIA = ("sm_80", "sm_90", "sm_100")
TASKS = [
    *itertools.product(("flash", "pointwise", "sine"), DEVICES),
    *itertools.product(("wide",), NVIDIA),
    ("wider", "gfx942"),
    *itertools.product(("over", "wrong", "crashing", "unfinished"), ("sm_90",)),
]

Outcomes = dict[tuple[str, str], Resources | Failure]


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    steps: list[tuple[int, int]] = []
    found = compile_all(
        [(KERNELS[name], arch) for name, arch in TASKS], 2, lambda *step: steps.append(step)
    )
    assert steps == [(done, len(TASKS)) for done in range(1, len(TASKS) + 1)]
    return dict(zip(TASKS, found, strict=True))


def taken(outcomes: Outcomes, name: str, arch: str) -> Resources:
    found = outcomes[name, arch]
    assert isinstance(found, Resources), found.message
    return found


@pytest.mark.parametrize("arch", DEVICES)
def test_kernels_compile_for_every_architecture(outcomes: Outcomes, arch: str) -> None:
    large, small = (taken(outcomes, name, arch) for name in ("flash", "pointwise"))
    assert (large.kernel, large.arch, large.num_warps) == ("flash", arch, 4)
    assert 64 < large.registers < 256
    assert (large.spills, large.stack) == (0, 0)
    assert large.shared >= 16 << 10
    assert 0 < large.occupancy.share < 1
    assert small.registers < 64
    assert small.shared == 0
    assert small.occupancy.share == 1
    assert (large.scalars > 0) == (arch == "gfx942")
    assert (large.tensor_columns > 0) == (arch == "sm_100")


@pytest.mark.parametrize(
    ("name", "arch"), [*(("wide", arch) for arch in NVIDIA), ("wider", "gfx942")]
)
def test_spills_are_counted(outcomes: Outcomes, name: str, arch: str) -> None:
    found = taken(outcomes, name, arch)
    assert found.spills >= 100
    assert found.stack >= 100
    assert found.registers == (512 if arch == "gfx942" else 255)
    assert found.launchable


@pytest.mark.parametrize("arch", NVIDIA)
def test_a_local_array_is_no_spill(outcomes: Outcomes, arch: str) -> None:
    found = taken(outcomes, "sine", arch)
    assert found.stack >= 28
    assert found.spills == 0


def test_more_shared_memory_than_there_is(outcomes: Outcomes) -> None:
    found = taken(outcomes, "over", "sm_90")
    assert found.shared > DEVICES["sm_90"].shared_per_block
    assert not found.launchable
    assert found.occupancy.limit == "shared memory"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "no_such_name is not defined"),
        ("crashing", "the compiling process ended with 3"),
        ("unfinished", "arguments with no type or no place in pointwise: ['SIZE', 'size']"),
    ],
)
def test_a_failure_is_told_and_the_others_go_on(
    outcomes: Outcomes, name: str, message: str
) -> None:
    found = outcomes[name, "sm_90"]
    assert isinstance(found, Failure)
    assert message in found.message


def test_an_unknown_architecture_names_the_known() -> None:
    with pytest.raises(UnknownArchitectureError) as caught:
        compile_all([(KERNELS["flash"], "sm90")])
    expected = "'sm90'. Did you mean 'sm_90'? Known: sm_80, sm_90, sm_100, gfx942."
    assert str(caught.value).endswith(expected)


def test_nothing_to_compile() -> None:
    assert compile_all([]) == []


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="not interpreted here")
def test_the_interpreter_cannot_compile_and_says_what_can() -> None:
    with pytest.raises(InterpreterModeError, match="python -m fuser kernels"):
        compile_kernel(KERNELS["pointwise"], "sm_90")


@pytest.mark.parametrize(
    ("arch", "warps", "registers", "shared_kib", "blocks", "share", "limit"),
    [
        ("sm_80", 4, 64, 48, 3, 12 / 64, "shared memory"),  # 164 // (48 + 1)
        ("sm_80", 8, 32, 0, 8, 1.0, "warps"),
        ("sm_80", 4, 65, 0, 7, 28 / 64, "registers"),  # 72 each: 7 warps a partition
        ("sm_90", 4, 255, 0, 2, 8 / 64, "registers"),
        ("sm_90", 8, 168, 100, 1, 8 / 64, "registers"),  # 12 warps of 168
        ("sm_90", 1, 32, 0, 32, 0.5, "blocks"),
        ("sm_90", 8, 128, 227, 1, 8 / 64, "shared memory"),
        ("sm_90", 8, 128, 228, 0, 0.0, "shared memory"),
        ("sm_90", 16, 255, 0, 0, 0.0, "registers"),
        ("sm_90", 64, 16, 0, 0, 0.0, "warps"),
        ("gfx942", 4, 128, 16, 4, 0.5, "registers"),
        ("gfx942", 4, 129, 16, 3, 12 / 32, "registers"),  # 136 each: 3 waves a SIMD
        ("gfx942", 4, 64, 24, 2, 8 / 32, "shared memory"),
        ("gfx942", 2, 32, 0, 16, 1.0, "warps"),
        ("gfx942", 8, 512, 0, 0, 0.0, "registers"),
        ("gfx942", 4, 32, 65, 0, 0.0, "shared memory"),
    ],
)
def test_occupancy_by_hand(
    arch: str, warps: int, registers: int, shared_kib: int, blocks: int, share: float, limit: str
) -> None:
    found = occupancy(DEVICES[arch], warps=warps, registers=registers, shared=shared_kib << 10)
    assert (found.blocks, found.share, found.limit) == (blocks, share, limit)
    assert found.warps == blocks * warps


def test_occupancy_by_scalar_registers_and_tensor_memory() -> None:
    scalars = occupancy(DEVICES["gfx942"], warps=4, registers=32, shared=0, scalars=102)
    assert (scalars.blocks, scalars.limit) == (7, "registers")
    columns = occupancy(DEVICES["sm_100"], warps=4, registers=32, shared=0, tensor_columns=256)
    assert (columns.blocks, columns.limit) == (2, "tensor memory")
    many = occupancy(DEVICES["sm_100"], warps=4, registers=32, shared=0, tensor_columns=513)
    assert (many.blocks, many.limit) == (0, "tensor memory")


CALCULATOR = """
#include <cstdio>
#include <climits>
#include "cuda_occupancy.h"

int main() {
    int major, warps, registers, shared, sm;
    while (scanf("%d %d %d %d %d", &major, &sm, &warps, &registers, &shared) == 5) {
        cudaOccDeviceProp device;
        device.computeMajor = major;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = 2048;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 << 10;
        device.sharedMemPerMultiprocessor = sm;
        device.sharedMemPerBlockOptin = sm - 1024;
        device.reservedSharedMemPerBlock = 1024;
        device.numSms = 100;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.sharedSizeBytes = 0;
        kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = sm - 1024;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult found;
        found.activeBlocksPerMultiprocessor = -1;
        cudaOccMaxActiveBlocksPerMultiprocessor(
            &found, &device, &kernel, &state, warps * 32, shared);
        printf("%d\\n", found.activeBlocksPerMultiprocessor);
    }
}
"""


@pytest.mark.parametrize("arch", NVIDIA)
def test_occupancy_is_that_of_the_calculator_of_cuda(arch: str, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("triton")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if spec is None or spec.origin is None or compiler is None:
        pytest.skip("needs triton and a C++ compiler")
    headers = Path(spec.origin).parent / "backends" / "nvidia" / "include"
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    command = [compiler, "-w", "-I", str(headers), "calculator.cpp", "-o", "calculator"]
    subprocess.run(command, cwd=tmp_path, check=True)
    device = DEVICES[arch]
    sizes = [0, 1, 1000, 20_000, 48 << 10, 50_000, 100_000, device.shared_per_block, 240_000]
    cases = list(itertools.product((1, 2, 4, 8, 12, 16, 32), range(16, 256, 7), sizes))
    major = {"sm_80": 8, "sm_90": 9, "sm_100": 10}[arch]
    text = "\n".join(f"{major} {device.shared} {w} {r} {s}" for w, r, s in cases)
    done = subprocess.run(
        [tmp_path / "calculator"], input=text, capture_output=True, text=True, check=True
    )
    ours = [occupancy(device, warps=w, registers=r, shared=s).blocks for w, r, s in cases]
    assert ours == [int(line) for line in done.stdout.split()]
