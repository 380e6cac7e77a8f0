"""Kernels compiled ahead of time, with no GPU present, and what they take of a processor.

Nothing here can run under `TRITON_INTERPRET=1`; `pool.compile_all` works from any process.

How registers that spilled to memory are counted, as bytes that a thread stores, each store counted
once however often it runs:

- NVIDIA: by what `ptxas -v` says. The stack in the binary's resource usage would not do: it holds
  local arrays too (`tl.sin` has one of 28 bytes: 32 bytes of stack, 16 local stores, no spill).
  Neither would local stores in the disassembly, for the same reason, nor triton's disassembly at
  all: `asm["sass"]` ends after 64 KiB of code. Where there is a stack, and only there, the text is
  assembled once more, since the log is gone once triton has the kernel in its cache.
- AMD: `.vgpr_spill_count` of the code object's metadata, four bytes each. Values that moved to
  accumulator registers are not in it, nor scalars, which spill to lanes of vector registers.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

from fuser.errors import InterpreterModeError

from .devices import Device, Occupancy, device, occupancy
from .kernel import Kernel


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        kernel: name of the function.
        arch: what it was compiled for.
        num_warps: of a program; warp specialisation adds to those that were asked for.
        registers: of a thread; on AMD vector and accumulator registers together. A kernel that
            spills beyond measure has few: ptxas then gives up at 64.
        spills: bytes that a thread stores because it has too few registers.
        stack: bytes of local memory of a thread, spills included.
        shared: bytes of shared memory, or LDS, of a program.
        occupancy: how many of its programs are resident at a time.
        accumulators: accumulator registers among the registers; AMD only.
        scalars: scalar registers of a wave; AMD only.
        tensor_columns: of tensor memory; sm_100 only.
    """

    kernel: str
    arch: str
    num_warps: int
    registers: int
    spills: int
    stack: int
    shared: int
    occupancy: Occupancy
    accumulators: int = 0
    scalars: int = 0
    tensor_columns: int = 0

    @property
    def launchable(self) -> bool:
        """Whether the device has room for one program; `occupancy.limit` says for what not."""
        return self.occupancy.blocks > 0


@dataclass(frozen=True)
class Failure:
    """A kernel that does not compile."""

    kernel: str
    arch: str
    message: str


def compile_kernel(kernel: Kernel, arch: str) -> Resources:
    """Compiles a kernel, or takes it from triton's cache, and reads what it takes.

    Compilers write to this process's standard output and error, and `sys.stdout` is replaced for a
    moment: see `pool.compile_all`.

    Args:
        kernel: what to compile.
        arch: one of `devices.DEVICES`.

    Raises:
        UnknownArchitectureError: `arch` is none of them.
        InterpreterModeError: triton's library is interpreted in this process.
        ValueError: the kernel's arguments are not those of its function.
        Exception: whatever triton raises.
    """
    where = device(arch)
    compiled = _compile(kernel, where)
    read = _read_nvidia if where.backend == "cuda" else _read_amd
    return read(compiled, where, kernel)


def _options(kernel: Kernel) -> dict[str, int]:
    return {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages}


def _target(where: Device) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget(where.backend, where.target, where.lanes)


def _compile(kernel: Kernel, where: Device) -> Any:
    import triton
    from triton import language
    from triton.compiler import ASTSource

    function = kernel.function()
    if not all(isinstance(f, triton.JITFunction) for f in (function, language.max)):
        raise InterpreterModeError
    types = dict(kernel.signature)
    wrong = set(function.arg_names) ^ (types.keys() | {name for name, _ in kernel.constants})
    if wrong:
        raise ValueError(f"arguments with no type or no place in {kernel.name}: {sorted(wrong)}")
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    attributes = {
        (index,): known
        for index, (name, kind) in enumerate(signature.items())
        if (known := _known(kind, name in kernel.divisible, where))
    }
    source = ASTSource(function, signature, dict(kernel.constants), attributes)
    return triton.compile(source, target=_target(where), options=_options(kernel))


def _known(kind: str, divisible: bool, where: Device) -> list[list[Any]]:
    """What the JIT would tell the compiler of an argument; tensors are taken to be under 2 GiB."""
    pointer, number = kind.startswith("*"), kind.startswith(("i", "u"))
    known: list[list[Any]] = []
    if divisible and (pointer or number):
        known.append(["tt.divisibility", 16])
    if pointer and where.backend == "hip":
        known.append(["tt.pointer_range", 32])
    return known


def _read_nvidia(compiled: Any, where: Device, kernel: Kernel) -> Resources:
    usage = _usage(compiled.asm["cubin"], compiled.metadata.name)
    stack = usage["STACK"] + usage["LOCAL"]
    shared, columns = compiled.metadata.shared, compiled.metadata.tmem_size or 0
    warps = compiled.metadata.num_warps
    held = occupancy(
        where, warps=warps, registers=usage["REG"], shared=shared, tensor_columns=columns
    )
    return Resources(
        kernel.name,
        where.name,
        warps,
        usage["REG"],
        _spilled(compiled.asm["ptx"], where, kernel) if stack else 0,
        stack,
        shared,
        held,
        tensor_columns=columns,
    )


def _usage(cubin: bytes, name: str) -> dict[str, int]:
    """REG, STACK, LOCAL, ... of a function; not SHARED, since kernels ask for theirs at launch."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(rf"Function {re.escape(name)}:\s*(.*)", text)
    if found is None:
        raise ValueError(f"cuobjdump knows nothing of {name}: {text}")
    return {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", found[1])}


def _spilled(ptx: str, where: Device, kernel: Kernel) -> int:
    from triton import knobs
    from triton.compiler.compiler import make_backend

    backend: Any = make_backend(_target(where))
    log = io.StringIO()
    with contextlib.redirect_stdout(log), knobs.nvidia.scope():
        knobs.nvidia.dump_ptxas_log = True
        backend.make_cubin(ptx, {}, backend.parse_options(_options(kernel)), where.target)
    stores = re.findall(r"(\d+) bytes spill stores", log.getvalue())
    if not stores:
        raise ValueError(f"ptxas says nothing of spills: {log.getvalue()}")
    return sum(map(int, stores))


def _read_amd(compiled: Any, where: Device, kernel: Kernel) -> Resources:
    found = re.findall(r"^[ -]+\.(\w+):\s+(\d+)$", compiled.asm["amdgcn"], re.MULTILINE)
    usage = {key: int(value) for key, value in found}
    registers, scalars = usage["vgpr_count"], usage["sgpr_count"]
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    held = occupancy(where, warps=warps, registers=registers, shared=shared, scalars=scalars)
    return Resources(
        kernel.name,
        where.name,
        warps,
        registers,
        4 * usage["vgpr_spill_count"],
        usage["private_segment_fixed_size"],
        shared,
        held,
        accumulators=usage["agpr_count"],
        scalars=scalars,
    )
