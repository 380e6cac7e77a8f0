"""What a multiprocessor has to share out, and how many programs that makes resident.

NVIDIA: "Technical Specifications per Compute Capability" and "Shared Memory" of the CUDA C++
Programming Guide; allocation as in `cuda_occupancy.h`, which NVIDIA ships with CUDA (and with
triton: the tests compare with it); tensor memory from the PTX ISA, `tcgen05`. AMD: "CDNA3
Instruction Set Architecture" for registers and LDS, LLVM's `AMDGPUBaseInfo.cpp` for granularities
and for waves by scalar registers.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuser.errors import UnknownArchitectureError


@dataclass(frozen=True)
class Device:
    """An architecture. A processor is a streaming multiprocessor, or a compute unit.

    Attributes:
        name: as users write it.
        backend: of Triton.
        target: the architecture as that backend writes it.
        lanes: threads of a warp, or wave.
        registers: 32-bit registers for each lane of a partition; a warp stays in one partition.
        register_granule: registers of a thread are allocated in multiples of this.
        scalar_registers: for all waves of a partition; 0 where there are none apart.
        partitions: of a processor.
        max_warps: resident on a processor.
        max_blocks: programs resident on a processor.
        max_threads_per_block: threads of a program.
        shared: bytes of shared memory, or LDS, of a processor, at its largest carve-out.
        shared_per_block: bytes that one program may ask for.
        shared_reserved: bytes that the system takes for each program.
        shared_granule: shared memory is allocated in multiples of this.
        tensor_columns: of tensor memory, on a processor.
    """

    name: str
    backend: str
    target: int | str
    lanes: int
    max_warps: int
    shared: int
    shared_per_block: int
    shared_reserved: int
    shared_granule: int
    registers: int = 512
    register_granule: int = 8
    scalar_registers: int = 0
    partitions: int = 4
    max_blocks: int = 32
    max_threads_per_block: int = 1024
    tensor_columns: int = 0


def _nvidia(name: str, target: int, shared: int, tensor_columns: int = 0) -> Device:
    return Device(
        name,
        "cuda",
        target,
        lanes=32,
        max_warps=64,
        shared=shared << 10,
        shared_per_block=(shared - 1) << 10,
        shared_reserved=1 << 10,
        shared_granule=128,
        tensor_columns=tensor_columns,
    )


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _nvidia("sm_80", 80, 164),
        _nvidia("sm_90", 90, 228),
        _nvidia("sm_100", 100, 228, tensor_columns=512),
        Device(
            "gfx942",
            "hip",
            "gfx942",
            lanes=64,
            max_warps=32,
            shared=64 << 10,
            shared_per_block=64 << 10,
            shared_reserved=0,
            shared_granule=512,
            scalar_registers=800,
        ),
    )
}
"""A100, H100 and H200, B200, MI300."""


def device(arch: str) -> Device:
    """The architecture with this name.

    Raises:
        UnknownArchitectureError: there is none.
    """
    if arch not in DEVICES:
        raise UnknownArchitectureError(arch, DEVICES)
    return DEVICES[arch]


@dataclass(frozen=True)
class Occupancy:
    """How many programs of a kernel are resident on a processor at a time.

    Attributes:
        blocks: programs; 0 if not even one can be launched.
        warps: of all of them.
        share: of the warps that the processor could hold, 0 to 1.
        limit: what there is too little of for one more: warps, registers, shared memory, tensor
            memory or blocks.
    """

    blocks: int
    warps: int
    share: float
    limit: str


def occupancy(
    device: Device,
    *,
    warps: int,
    registers: int,
    shared: int,
    scalars: int = 0,
    tensor_columns: int = 0,
) -> Occupancy:
    """What the resources that a kernel takes allow.

    Args:
        device: where it runs.
        warps: of a program.
        registers: of a thread; on AMD vector and accumulator registers together.
        shared: bytes of a program, without what the system reserves.
        scalars: scalar registers of a wave, AMD only.
        tensor_columns: of tensor memory that a program allocates. Programs that find too few do
            become resident, but wait.
    """
    fits = warps * device.lanes <= device.max_threads_per_block
    limits = {
        "warps": device.max_warps // warps if fits else 0,
        "registers": _by_registers(device, warps, registers, scalars),
        "shared memory": _by_shared(device, shared),
        "tensor memory": device.tensor_columns // tensor_columns if tensor_columns else None,
        "blocks": device.max_blocks,
    }
    known = {what: number for what, number in limits.items() if number is not None}
    limit = min(known, key=lambda what: known[what])
    blocks = known[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / device.max_warps, limit)


def _by_registers(device: Device, warps: int, registers: int, scalars: int) -> int:
    per_partition = device.registers // max(1, _round_up(registers, device.register_granule))
    if device.scalar_registers and scalars:
        per_partition = min(per_partition, device.scalar_registers // scalars)
    if -(-warps // device.partitions) > per_partition:
        return 0  # one program: its warps go to all partitions alike
    return per_partition * device.partitions // warps


def _by_shared(device: Device, shared: int) -> int | None:
    if shared > device.shared_per_block:
        return 0
    taken = _round_up(shared + device.shared_reserved, device.shared_granule)
    return device.shared // taken if taken else None


def _round_up(number: int, granule: int) -> int:
    return -(-number // granule) * granule
