"""Tile sizes, warps and pipeline depth of a kernel, by rule.

Of the shapes below, the largest first, the first one is taken whose tiles fit into the shared
memory and the registers that the device gives a program. What a stage keeps is known from its text:
sums in registers, what is loaded in every step in shared memory, as many times as there are stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Layout
from .tile import chunks


@dataclass(frozen=True)
class Config:
    """How a kernel is cut.

    Attributes:
        block_m: queries in a tile.
        block_n: keys in a tile.
        num_warps: warps of a program.
        num_stages: tiles in flight.
    """

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True)
class Target:
    """What the rule knows of a device.

    Attributes:
        arch: `sm_90`, `gfx942`, or `interpreter`.
        processors: streaming multiprocessors, or compute units.
        shared: bytes of shared memory that one program may have.
        lanes: threads in a warp.
    """

    arch: str
    processors: int
    shared: int
    lanes: int = 32


INTERPRETER = Target("interpreter", 4, 1 << 20)
TARGETS = {
    target.arch: target
    for target in (
        Target("sm_80", 108, 163 << 10), Target("sm_90", 132, 227 << 10),
        Target("sm_100", 148, 227 << 10), Target("gfx942", 304, 64 << 10, 64),
    )
}  # fmt: skip
"""What kernels are compiled for where no such device is at hand."""
INTERPRETED = Config(16, 16)
"""Small, so that short sequences have several tiles: in the interpreter it is about numbers."""
REGISTERS = 168
"""Values of the tiles that a thread may hold, of 255: the rest is addresses and what is in flight.
With it `python -m fuser kernels --arch sm_90` finds no spills at 64 features in bf16, and 4 to 80
bytes in some kernels at 128, whose shapes are not settled yet."""
SHAPES: dict[str, tuple[Config, ...]] = {
    "forward": (
        Config(128, 128, 8, 3), Config(128, 128, 8, 2), Config(128, 64, 8, 3),
        Config(128, 64, 8, 2), Config(64, 64, 4, 3), Config(64, 64, 4, 2), Config(64, 32, 4, 2),
        Config(32, 32, 4, 2), Config(16, 32, 4, 2), Config(16, 16, 4, 1),
    ),
    "rows": (
        Config(128, 64, 8, 2), Config(64, 64, 8, 2), Config(64, 64, 4, 2), Config(64, 32, 4, 2),
        Config(32, 32, 4, 2), Config(32, 16, 4, 2), Config(16, 16, 4, 1),
    ),
    "keys": (
        Config(64, 128, 8, 2), Config(32, 128, 8, 2), Config(64, 64, 8, 2), Config(32, 64, 4, 2),
        Config(32, 32, 4, 2), Config(16, 32, 4, 2), Config(16, 16, 4, 1),
    ),
    "tiles": (
        Config(64, 64, 8, 2), Config(64, 64, 8, 1), Config(32, 64, 4, 1), Config(32, 32, 4, 1),
        Config(16, 16, 4, 1),
    ),
}  # fmt: skip
SHAPES["delta"] = SHAPES["rows"]
DECODING = (Config(16, 128, 4, 3), Config(16, 64, 4, 3), Config(16, 64, 4, 2), Config(16, 32, 4, 2),
            Config(16, 16, 4, 1))  # fmt: skip
"""Of the forward kernel, where there are at most 16 rows."""
COMBINING = Config(16, 16, 4, 1)


def choose(stage: str, layout: Layout, target: Target, *, rows: int) -> Config:
    """The config of a stage.

    Args:
        stage: one of `build.STAGES`.
        layout: of the attention.
        target: the device.
        rows: queries of a program's heads together.
    """
    if target.arch == "interpreter":
        return INTERPRETED
    if stage == "combine":
        return COMBINING
    stage = "forward" if stage == "table" else stage  # it has the tiles of the kernel it is for
    shapes = DECODING if stage == "forward" and rows <= 16 else SHAPES[stage]
    for config in shapes:
        if _fits(stage, layout, config, target):
            return config
    return shapes[-1]


def _fits(stage: str, layout: Layout, config: Config, target: Target) -> bool:
    threads = config.num_warps * target.lanes
    return (
        shared_bytes(stage, layout, config) <= target.shared
        and registers(stage, layout, config) / threads <= REGISTERS
    )


def _widths(layout: Layout) -> tuple[int, int]:
    """Padded features of all q, and of v."""
    q = sum(size for x in layout.q for _, size in chunks(x.features))
    return q, sum(size for _, size in chunks(layout.v.features))


def shared_bytes(stage: str, layout: Layout, config: Config) -> int:
    """Shared memory of the tiles that a stage loads once, and of those in flight."""
    q, v = _widths(layout)
    item = layout.v.dtype.itemsize
    m, n, stages = config.block_m, config.block_n, config.num_stages
    once, each = {
        "forward": (m * q, n * (q + v)),
        "rows": (m * (q + v), n * (q + v)),
        "delta": (m * (q + v), n * (q + v)),
        "keys": (n * (q + v), m * (q + v)),
        "tiles": (0, (m + n) * (q + v)),
    }[stage]
    return (once + stages * each + m * n) * item


def registers(stage: str, layout: Layout, config: Config) -> int:
    """Values that the threads of a program hold together, in units of 32 bits."""
    q, v = _widths(layout)
    m, n = config.block_m, config.block_n
    item = layout.v.dtype.itemsize
    sums, tiles, held = {
        "forward": (m * v, 2, m * q),
        "rows": (m * q, 4, m * (q + v)),
        "delta": (m, 4, m * (q + v)),
        "keys": (n * (q + v), 4, 0),
        "tiles": (m * n, 4, 0),
    }[stage]
    whole = sum(1 for c in layout.captured if {"q", "k"} <= set(c.axes))
    wide = (m + n) * max(q, v) if item == 4 else 0
    return sums + (tiles + whole) * m * n + held * item // 4 + wide
