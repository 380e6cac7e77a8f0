"""Tile sizes, warps and pipeline depth of a kernel, by rule.

Of the shapes below, the largest first, the first one is taken whose tiles fit into the shared
memory and the registers that the device gives a program. What a stage keeps is known from its text:
sums, scores and their gradients in registers, and what is loaded in shared memory, as many times as
there are stages. Where operands are, and how many values of a score are alive at once, depends on
the unit that multiplies; those numbers are fitted to what compilers report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ...triton.launch import Target
from .layout import Layout
from .memory import chunks
from .numerics import is_arithmetic


@dataclass(frozen=True)
class Config:
    """How a kernel is cut.

    Attributes:
        block_m: queries in a tile.
        block_n: keys in a tile.
        num_warps: warps of a program.
        num_stages: tiles in flight.
        tma: q, k and v are loaded through tensor descriptors.
        warp_specialize: some warps load while others compute.
        hoists: what a loop does not change is computed before it, and held meanwhile.
    """

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2
    tma: bool = False
    warp_specialize: bool = False
    hoists: bool = True


INTERPRETED = Config(16, 16)
"""Small, so that short sequences have several tiles: in the interpreter it is about numbers."""


@dataclass(frozen=True)
class Unit:
    """What multiplies tiles, and what a thread has in registers meanwhile.

    The numbers tell most kernels that spill, by `python -m fuser kernels`, from those that do not,
    at 64 and 128 features. Sums over keys by atomics are not counted.

    Attributes:
        registers: values that a thread may hold by this estimate; the rest is addresses, masks, and
            what compilers move ahead.
        forward: values for each score of a tile, where most are alive, in the forward.
        backward: the same in the backward.
        sums: registers for each sum in the backward; fewer where sums have a memory of their own.
        own: whether operands that a program keeps are in registers; else in shared memory.
        streamed: whether every warp has all operands of a step in registers.
        crossed: values for each position of a captured tile that is read across its rows while
            other tiles are in flight; 0 where it comes through shared memory.
        pieces: values more in the backward, where features are no power of two.
        in_flight: tiles at most.
    """

    registers: int
    forward: float
    backward: float
    sums: float = 1.0
    own: bool = True
    streamed: bool = False
    crossed: float = 0.0
    pieces: int = 0
    in_flight: int = 4


MMA = Unit(170, 3.0, 3.25, crossed=2.0, pieces=60)
"""A warp multiplies what it has in registers: every NVIDIA processor."""
WGMMA = Unit(196, 2.25, 4.0, own=False)
"""Four warps multiply what is in shared memory, 16 rows of the result each."""
TCGEN05 = Unit(192, 2.5, 5.5, sums=0.5, own=False)
"""Sums are in tensor memory, and pass through registers to be rescaled and stored."""
MFMA = Unit(180, 2.25, 4.0, streamed=True, in_flight=2)
"""A wave of AMD's; of a thread's 512 registers, half are for nothing but sums."""
COLUMNS = 512
"""Of tensor memory, each a number for each of 128 rows."""
DESCRIBED = 8
"""Registers that addresses leave free where tiles are loaded by descriptors."""
UNROLLED = {"forward": 384, "rows": 256, "keys": 256, "dk": 256, "dv": 256, "delta": 256,
            "tiles": 256}  # fmt: skip
"""Features of all rows and columns of a thread in one product in fp32, which NVIDIA's units round
to tf32: without them all its multiplications stand one after the other, and are fed ahead."""
SHAPES: dict[str, tuple[Config, ...]] = {
    "forward": (
        Config(128, 128, 8, 3), Config(128, 128, 8, 2), Config(128, 64, 8, 3),
        Config(128, 64, 8, 2), Config(128, 32, 8, 3), Config(64, 64, 4, 3), Config(64, 64, 4, 2),
        Config(64, 64, 8, 2), Config(64, 32, 4, 2), Config(64, 32, 8, 2), Config(32, 32, 4, 2),
        Config(32, 32, 8, 2), Config(16, 32, 4, 2), Config(16, 16, 4, 1),
    ),
    "rows": (
        Config(128, 64, 8, 2), Config(64, 64, 8, 2), Config(64, 64, 4, 2), Config(64, 32, 8, 2),
        Config(64, 32, 4, 2), Config(32, 32, 8, 2), Config(32, 32, 4, 2), Config(32, 16, 4, 2),
        Config(16, 16, 4, 1),
    ),
    "keys": (
        Config(64, 128, 8, 2), Config(32, 128, 8, 2), Config(32, 128, 8, 1), Config(64, 64, 8, 2),
        Config(64, 64, 8, 1), Config(16, 128, 8, 2), Config(32, 64, 8, 2), Config(32, 64, 4, 2),
        Config(16, 64, 8, 2), Config(32, 32, 8, 2), Config(32, 32, 4, 2), Config(16, 32, 4, 2),
        Config(16, 16, 4, 1),
    ),
    "tiles": (
        Config(64, 64, 8, 2), Config(32, 64, 8, 1), Config(32, 64, 4, 1), Config(32, 32, 4, 1),
        Config(16, 16, 4, 1),
    ),
}  # fmt: skip
"""In warps of 32 threads."""
SHAPES.update(delta=SHAPES["rows"], dk=SHAPES["keys"], dv=SHAPES["keys"])
TCGEN05_SHAPES: dict[str, tuple[Config, ...]] = {
    "rows": (Config(128, 64, 8, 3), Config(64, 64, 8, 3), Config(64, 32, 8, 3), *SHAPES["rows"]),
    "keys": (Config(64, 64, 8, 3), Config(32, 64, 8, 3), *SHAPES["keys"]),
}
"""With two tiles in flight, or 128 keys of 64 features, ptxas would rather spill a few bytes than
take over 128 registers."""
WGMMA_SHAPES: dict[str, tuple[Config, ...]] = {
    "forward": (
        Config(64, 64, 4, 3, tma=True), Config(128, 64, 8, 2, tma=True),
        Config(64, 64, 4, 2, tma=True), Config(128, 32, 8, 3, tma=True), Config(64, 64, 4, 3),
        *SHAPES["forward"],
    ),
    "rows": (
        Config(128, 64, 8, 3), Config(64, 64, 4, 2, tma=True), Config(128, 32, 8, 2, tma=True),
        *SHAPES["rows"],
    ),
    "keys": (
        Config(64, 64, 4, 2, tma=True), Config(32, 64, 4, 2, tma=True),
        Config(32, 128, 8, 2, tma=True), *SHAPES["keys"],
    ),
    "dk": (Config(32, 128, 8, 2), Config(32, 64, 4, 2, tma=True), *SHAPES["keys"]),
    "dv": (
        Config(64, 128, 8, 2, tma=True), Config(64, 64, 4, 2, tma=True),
        Config(32, 64, 4, 2, tma=True), *SHAPES["keys"],
    ),
    "tiles": (Config(64, 64, 8, 3), *SHAPES["tiles"]),
}  # fmt: skip
"""On an H200 the fastest of some thirty for each stage, at 32 to 256 features, or within a few
percent of it (`benchmarks/results/configs-cuda.csv`). Two small programs in a processor do better
than a large one: one computes exponentials while the other multiplies."""
WGMMA_FEW: dict[str, tuple[Config, ...]] = {
    "rows": (Config(64, 64, 4, 3), Config(64, 64, 4, 2, tma=True)),
    "keys": (Config(64, 64, 4, 1),),
}
"""Tried first for fewer positions than `FEW`: of a window, larger tiles hold more that is hidden,
and what a program waits for at first is more of its time."""
FEW = 1536
"""Positions that a program goes over."""
DESCRIBED_FROM = 768 * 128
"""Numbers of k, or of v, that a program reads at least where descriptors pay: each program makes
its own at first, which takes microseconds."""
DECODING = (
    Config(16, 64, 4, 3), Config(16, 64, 8, 3), Config(16, 64, 8, 2), Config(16, 32, 4, 2),
    Config(16, 32, 8, 2), Config(16, 16, 4, 1),
)  # fmt: skip
"""Of the forward kernel, where there are at most 16 rows; in the first, a thread has more scores
than registers for what a function of them needs."""
UNROLLED_SHAPES = (
    Config(32, 32, 4, 1), Config(32, 32, 8, 1), Config(16, 32, 8, 1), Config(16, 16, 8, 1),
)  # fmt: skip
"""Where products are unrolled: with more for a thread, or in flight, ptxas would rather spill a few
bytes than have fewer programs resident. It spills what is computed before a loop and waits for its
end: where programs own queries, nothing is hoisted out of loops. Of those for sm_90 none spills."""
UNROLLED_IN_PIECES = (Config(16, 16, 8, 2),)
"""Of the forward kernel, where more than `TOGETHER` / 2 features of q are multiplied in more than
two pieces (several products, or chunks of features): with two tiles in flight these pass through
shared memory (72 to 100 registers). Held by threads they took all registers and up to 388 bytes
beyond on sm_100."""
OF_ROWS = ("forward", "rows", "delta")
"""Stages whose programs own queries."""
OF_KEYS = ("keys", "dk", "dv")
"""Stages whose programs own keys."""
TOGETHER = 256
"""Features of q and of v, together, up to which one kernel sums up dk and dv."""
COMBINING = Config(16, 16, 4, 1)


def choose(
    stage: str, layout: Layout, target: Target, *, rows: int, visits: float = math.inf
) -> Config:
    """The config of a stage.

    Args:
        stage: one of `build.STAGES`.
        layout: of the attention.
        target: the device.
        rows: queries of a program's heads together.
        visits: positions, of keys or of queries, that a program goes over.
    """
    if target.arch == "interpreter":
        return INTERPRETED
    if stage == "combine":
        return COMBINING
    stage = "forward" if stage == "table" else stage  # it has the tiles of the kernel it is for
    described = visits * max(_widths(layout)) >= DESCRIBED_FROM
    shapes = _shapes(stage, layout, target, rows, few=visits < FEW)
    shapes = [c for c in shapes if described or not c.tma]
    found = [_cut(stage, c, target) for c in shapes]
    return next((c for c in found if _fits(stage, layout, c, target)), found[-1])


def splits_keys(layout: Layout, target: Target) -> bool:
    """Whether dk and dv have a kernel each, which recompute the same probabilities.

    Sums of both leave no registers for large tiles where heads have many features; where sums have
    a memory of their own, or tiles are small anyway, one kernel computes less.
    """
    nvidia = target.arch.startswith("sm_") and not _has_tensor_memory(target)
    return nvidia and not _is_unrolled(layout, target) and sum(_widths(layout)) > TOGETHER


def _shapes(
    stage: str, layout: Layout, target: Target, rows: int, *, few: bool
) -> tuple[Config, ...]:
    decoding = stage == "forward" and rows <= 16
    if _is_unrolled(layout, target):
        shapes = UNROLLED_SHAPES[2 if decoding or stage == "tiles" else 0 :]
        pieces = sum(len(chunks(x.features)) for x in layout.q)
        if stage == "forward" and pieces > 2 and _widths(layout)[0] > TOGETHER // 2:
            shapes = UNROLLED_IN_PIECES
        hoists = target.arch == "sm_90" or stage not in OF_ROWS
        return tuple(replace(c, hoists=hoists) for c in shapes)
    if decoding:
        return DECODING[0 if is_arithmetic(layout.score) else 1 :]
    if target.arch == "sm_90":
        return (*(WGMMA_FEW.get(stage, ()) if few else ()), *WGMMA_SHAPES.get(stage, SHAPES[stage]))
    own = TCGEN05_SHAPES if _has_tensor_memory(target) else SHAPES
    return own.get(stage, SHAPES[stage])


def _cut(stage: str, config: Config, target: Target) -> Config:
    """A shape for a device: as many threads, and no more tiles in flight than it can have."""
    warps = max(min(config.num_warps, 4), config.num_warps * 32 // target.lanes)
    most = unit_of(stage, config, target).in_flight
    return replace(config, num_warps=warps, num_stages=min(config.num_stages, most))


def _has_tensor_memory(target: Target) -> bool:
    return target.arch in ("sm_100", "sm_103")


def _own_rows(stage: str, config: Config) -> int:
    """Rows of a program's sums."""
    return config.block_n if stage in OF_KEYS else config.block_m


def unit_of(stage: str, config: Config, target: Target) -> Unit:
    """What the products of a stage run on: the newer units want many rows."""
    rows = _own_rows(stage, config)
    if target.arch.startswith("gfx"):
        return MFMA
    many = rows >= (64 if stage == "tiles" else 16 * config.num_warps)
    if target.arch == "sm_90" and many:
        return WGMMA
    if _has_tensor_memory(target) and rows >= 64:
        return TCGEN05
    return MMA


def _fits(stage: str, layout: Layout, config: Config, target: Target) -> bool:
    if (config.tma and not target.tma) or (config.warp_specialize and not target.warp_specialize):
        return False
    if shared_bytes(stage, layout, config, target) > _available(stage, config, target):
        return False
    threads = config.num_warps * target.lanes
    if _is_unrolled(layout, target):
        positions = config.block_m * config.block_n / threads
        return 2 * positions**0.5 * max(_widths(layout)) <= UNROLLED[stage]
    unit = unit_of(stage, config, target)
    if unit is TCGEN05 and columns(stage, layout, config) > COLUMNS:
        return False
    if target.arch == "sm_90" and stage in OF_KEYS and unit is MMA and config.block_n >= 64:
        return False  # two groups of warps would share rows, and spill what they exchange
    spared = DESCRIBED if config.tma else 0
    return registers(stage, layout, config, target) <= unit.registers + spared


def _available(stage: str, config: Config, target: Target) -> int:
    """Shared memory for one program; a small one is there to share its processor."""
    shares = target.arch == "sm_90" and stage == "rows" and config in WGMMA_FEW[stage]
    return target.shared // 2 if shares else target.shared


def _is_unrolled(layout: Layout, target: Target) -> bool:
    nvidia = not target.arch.startswith("gfx")
    return nvidia and layout.v.dtype is torch.float32 and layout.precision == "ieee"


def _widths(layout: Layout) -> tuple[int, int]:
    """Padded features of all q, and of v."""
    q = sum(size for x in layout.q for _, size in chunks(x.features))
    return q, sum(size for _, size in chunks(layout.v.features))


def _operands(stage: str, layout: Layout, config: Config) -> tuple[int, int]:
    """Bytes of the operands that a program keeps, and of those of each step."""
    q, v = _widths(layout)
    m, n, item = config.block_m, config.block_n, layout.v.dtype.itemsize
    kept, each = {
        "forward": (m * q, n * (q + v)),
        "rows": (m * (q + v), n * (q + v)),
        "delta": (m * (q + v), n * (q + v)),
        "keys": (n * (q + v), m * (q + v)),
        "dk": (n * (q + v), m * (q + v)),
        "dv": (n * q, m * (q + v)),
        "tiles": (0, (m + n) * (q + v)),
    }[stage]
    return kept * item, each * item


def _whole(layout: Layout) -> list[int]:
    """Bytes of an element of each captured tensor that has one for every score."""
    return [c.dtype.itemsize for c in layout.captured if {"q", "k"} <= set(c.axes)]


def shared_bytes(stage: str, layout: Layout, config: Config, target: Target) -> int:
    """Shared memory of the operands that a stage keeps, of those in flight, and of scores."""
    unit = unit_of(stage, config, target)
    kept, each = _operands(stage, layout, config)
    scores = config.block_m * config.block_n
    copied = scores * layout.v.dtype.itemsize
    if unit is MFMA:  # what is kept passes through; what is captured is laid out anew
        each *= max(1, config.num_stages - 1)
        anew = scores * 4 * len(_whole(layout))
        if any(c.rank >= 0 for c in layout.captured):  # and so are the indices of tables
            anew += scores * 8
        return max(kept, each + copied + anew)
    buffers = config.num_stages if not unit.own else max(1, config.num_stages - 1)
    captured = 0 if stage in OF_KEYS else (config.num_stages - 1) * scores * sum(_whole(layout))
    if unit is TCGEN05:
        copied *= 2
        rows = _own_rows(stage, config)
        if stage in OF_KEYS and rows < 128:  # sums are stored through it
            copied = max(copied, rows * max(_widths(layout)) * 4)
    return kept + buffers * each + captured + copied


def columns(stage: str, layout: Layout, config: Config) -> int:
    """Tensor memory of sums, and of scores and their gradients; sums of 64 rows have their columns
    to themselves, as Triton allocates them."""
    q, v = _widths(layout)
    m, n = config.block_m, config.block_n
    sums, scores = {
        "forward": (v, 2 * n), "rows": (q, 3 * n), "delta": (0, 3 * n), "keys": (q + v, 3 * m),
        "dk": (q, 3 * m), "dv": (v, 2 * m), "tiles": (0, 3 * n),
    }[stage]  # fmt: skip
    return sums + scores * _own_rows(stage, config) // 128


def registers(stage: str, layout: Layout, config: Config, target: Target) -> float:
    """What a thread holds at least, where most is alive."""
    unit = unit_of(stage, config, target)
    q, v = _widths(layout)
    m, n, threads = config.block_m, config.block_n, config.num_warps * target.lanes
    sums, values, times = {
        "forward": (m * v, unit.forward, 0.5),
        "rows": (m * q, unit.backward, 1.0),
        "delta": (m, unit.backward, 1.0),
        "keys": (n * (q + v), unit.backward, 2.0),
        "dk": (n * q, unit.backward, 2.0),
        "dv": (n * v, unit.forward, 1.0),
        "tiles": (m * n, 2 * unit.backward, 0.0),
    }[stage]
    kept, each = _operands(stage, layout, config)
    if stage in (*OF_KEYS, "tiles") and config.num_stages > 1:
        values += unit.crossed * len(_whole(layout))
    # numbers of documents and the like, compared at every score: wide ones hold more
    vectors = [c.dtype for c in layout.captured if ("q" in c.axes) != ("k" in c.axes)]
    values += sum(d.itemsize / 32 for d in vectors if not d.is_floating_point)
    # where elements of tables are, in 64 bits
    values += 2 * sum(c.rank >= 0 for c in layout.captured)
    found = (1.0 if stage == "forward" else unit.sums) * sums + values * m * n
    if stage in ("rows", *OF_KEYS) and any(len(chunks(x.features)) > 1 for x in layout.q):
        found += unit.pieces * threads
    if unit.own:
        found += (each if stage == "tiles" else kept) / 4
    return found / threads + (times * each / 4 / target.lanes if unit.streamed else 0.0)
