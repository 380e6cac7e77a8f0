"""How the kernels of an activation are cut, by a rule from the sizes and the device."""

from __future__ import annotations

from dataclasses import dataclass

from ...triton.launch import Target

_TILE, _COLUMNS = 1024, 1024
_INTERPRETED = 256, 64
"""Small, so that small sizes have several tiles."""
_THREAD = 8
"""Elements of a thread: 16 bytes of half precision."""
_RESIDENT = 4
"""Programs to a processor, where each adds something up over several tiles."""


@dataclass(frozen=True)
class Config:
    """How one kernel is cut.

    Attributes:
        block_m: rows of a tile.
        block_f: its columns.
        num_warps: of a program.
    """

    block_m: int
    block_f: int
    num_warps: int = 4


@dataclass(frozen=True)
class Sizes:
    """What the rule reads; of symbols what they are in the example.

    Attributes:
        lead: positions of leading dimensions.
        rest: rows of one of them.
        columns: of a row.
    """

    lead: int
    rest: int
    columns: int


def cut(sizes: Sizes, target: Target) -> Config:
    """The tiles of a kernel."""
    tile, most = _INTERPRETED if target.arch == "interpreter" else (_TILE, _COLUMNS)
    f = min(power_of_two(sizes.columns), most)
    m = min(power_of_two(sizes.rest), max(1, tile // f))
    return Config(m, f, max(1, min(4, m * f // (target.lanes * _THREAD))))


def programs(sizes: Sizes, config: Config, target: Target) -> int:
    """Programs that share the rows of a block of columns, and add something up over them."""
    tiles = -(-sizes.rest // config.block_m)
    others = sizes.lead * -(-sizes.columns // config.block_f)
    return max(1, min(tiles, _RESIDENT * target.processors // max(others, 1)))


def power_of_two(n: int) -> int:
    """The smallest one that is no less than n."""
    return 1 << max(n - 1, 0).bit_length()
