"""How a norm is cut, by a rule from its rows, their length and the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import prod

from ...triton.launch import Target
from .layout import Layout


class Way(Enum):
    """How a row is read."""

    WHOLE = "whole"
    """Once: a tile has all of it."""
    LONG = "long"
    """Twice, tile by tile, by one program."""
    SPLIT = "split"
    """Twice, each time by several programs that have a part of it each."""


@dataclass(frozen=True)
class Config:
    """How one kernel is cut.

    Attributes:
        block_m: rows of a tile.
        block_u: its slow columns, where there are such.
        block_f: its fast columns.
        num_warps: of a program.
    """

    block_m: int
    block_u: int
    block_f: int
    num_warps: int = 4

    def block(self, axis: str) -> int:
        return {"m": self.block_m, "u": self.block_u, "f": self.block_f}[axis]


@dataclass(frozen=True)
class Limits:
    """What a tile may have.

    Attributes:
        whole: elements of a row that is read once, by `_FEW` operands or fewer; half of it, where
            there are more, or columns have two axes.
        tile: elements of other tiles.
        thread: elements of a thread, where a tile has whole rows; of others it has 16 bytes.
    """

    whole: int
    tile: int
    thread: int

    def of(self, layout: Layout) -> int:
        """Elements of a row that is read once."""
        return self.longest(sum(map(layout.whole_columns, layout.operands)), len(layout.inner))

    def longest(self, wide: int, dims: int) -> int:
        """The same, of so many operands that have all columns, in so many dimensions."""
        return self.whole if wide <= _FEW and dims == 1 else self.whole // 2


_FEW = 3
FORWARD = Limits(16384, 2048, 16)
BACKWARD = Limits(8192, 2048, 16)
BUSY = 8
"""Elements of a thread in the backward, on sm_100, and where more than `_FEW` operands have all
columns on NVIDIA's other processors but for sm_90, which was measured: of five operands in fp32
sixteen elements of each spill 100 bytes on sm_80 and 332 on sm_100, of one with a tanh 36 there."""
INTERPRETED = Limits(512, 512, 512)
"""Small, so that rows of small sizes are long."""


@dataclass(frozen=True)
class Sizes:
    """What the rule reads; of symbols what they are in the example.

    Attributes:
        rows: of all positions.
        rest: of one position of the leading dimensions.
        inner: of columns, as in a layout.
    """

    rows: int
    rest: int
    inner: tuple[int, ...]


def limits(target: Target, *, backward: bool) -> Limits:
    """Of a device."""
    if target.arch == "interpreter":
        return INTERPRETED
    return BACKWARD if backward else FORWARD


def way(layout: Layout, sizes: Sizes, target: Target, *, backward: bool) -> Way:
    """How rows are read: whole ones where they fit; several programs to each where there are fewer
    rows than the device has processors."""
    if layout.spec.bare or layout.spec.peak is not None:
        return Way.WHOLE
    own = limits(target, backward=backward)
    padded = power_of_two(prod(sizes.inner[:-1])) * power_of_two(sizes.inner[-1])
    known = all(isinstance(s, int) for s in layout.inner)
    if known and padded * len(layout.spec.members) <= own.of(layout):
        return Way.WHOLE
    config = cut(layout, sizes, target, Way.LONG, backward=backward)
    tiles = -(-sizes.rest // config.block_m)
    return Way.LONG if tiles >= target.processors else Way.SPLIT


def cut(layout: Layout, sizes: Sizes, target: Target, by: Way, *, backward: bool) -> Config:
    """The tiles of a kernel."""
    own = limits(target, backward=backward)
    each = power_of_two(len(layout.spec.members))
    few = max(1, own.thread // each**2)  # else 255 registers
    own = replace(own, tile=own.tile // each, thread=few)
    u, f, rows = map(power_of_two, (prod(sizes.inner[:-1]), sizes.inner[-1], sizes.rest))
    if by is not Way.WHOLE:
        f = min(f, own.tile)
        near = min(rows, max(1, _NEAR // f)) if layout.between else 1
        tile = own.tile // 2 if layout.between else own.tile  # else sm_100 spills
        u = min(u, max(1, tile // (f * near)))
        return _with_warps(near, u, f, _each(layout, target, own))
    m = min(rows, max(1, own.tile // (u * f)))
    busy = backward and _is_busy(layout, target)
    return _with_warps(m, u, f, min(own.thread, BUSY) if busy else own.thread)


def _is_busy(layout: Layout, target: Target) -> bool:
    """Whether a thread of the backward has too few registers for as many elements as elsewhere."""
    if target.lanes > 32 or target.arch in ("sm_90", "interpreter"):
        return False
    wide = sum(map(layout.whole_columns, layout.operands))
    return target.arch == "sm_100" or wide > _FEW


_NEAR = 64
"""Elements of rows next to each other that are read together, where columns are further apart."""


def _each(layout: Layout, target: Target, own: Limits) -> int:
    """Elements of a thread, of a part of a row: 16 bytes. More, or fewer, where ptxas would keep 64
    registers for them and spill the next two."""
    if layout.between:
        return min(own.thread, 8)
    return 4 if target.arch == "sm_100" else min(own.thread, 16 // layout.itemsize)


def _with_warps(m: int, u: int, f: int, each: int) -> Config:
    warps = m * u * f // (32 * each)
    return Config(m, u, f, min(16, max(1, warps)))


def programs(rest_tiles: int, lead: int, target: Target) -> int:
    """Programs that share the rows of a position of the leading dimensions, and add something up
    over those that they have."""
    return max(1, min(rest_tiles, _RESIDENT * target.processors // max(lead, 1)))


def parts(pieces: int, tiles: int, target: Target) -> int:
    """Of a row, each of which is one program's."""
    return max(1, min(pieces, _MOST, -(-_RESIDENT * target.processors // max(tiles, 1))))


_RESIDENT = 4
"""Programs to a processor."""
_MOST = 256
"""Parts of a row: each program reads the sums of all."""


def power_of_two(n: int) -> int:
    """The smallest one that is no less than n."""
    return 1 << max(n - 1, 0).bit_length()
