"""How kernels are cut: by a rule from the rows that an expert has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layout import Layout

STAGES = ("count", "scan", "place", "up", "down", "hidden", "tokens", "matrix", "bias")
"""What a kernel of a mixture is for."""


@dataclass(frozen=True)
class Config:
    """How one kernel is cut.

    Attributes:
        block_m: rows of a tile.
        block_n: its columns.
        block_k: what is added up in one step.
        group: tiles of rows that are worked on together, so that they share columns in the cache.
        num_warps: of a program.
        num_stages: depth of the software pipeline.
        parts: of the columns that are worked on one after the other once they are added up, so
            that fewer registers are in use; one or two.
        tma: matrices that lie as descriptors want them are loaded through those.
        persistent: programs to a processor, each of which goes from tile to tile; 0: every tile
            has a program.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    group: int = 8
    parts: int = 1
    tma: bool = False
    persistent: int = 0


INTERPRETED = Config(16, 32, 32, group=2, parts=2)
"""Small tiles, so that small sizes have several, with edges."""
SORTING = Config(0, 0, 0, num_warps=8, num_stages=1)
"""The kernels that sort have tables of choices and experts, see `sort`."""


def rows_of_tile(rows: float) -> int:
    """Rows of the tiles of all stages that own rows, by the rows that an expert has on average."""
    return next((m for m in (16, 32, 64) if rows <= m), 128)


def choose(stage: str, layout: Layout, arch: str, rows: float) -> Config:
    """The rule.

    Args:
        stage: one of `STAGES`.
        layout: what is computed.
        arch: of `devices.DEVICES`.
        rows: that an expert has on average.
    """
    if stage in ("count", "scan", "place"):
        return SORTING
    if layout.interpreted:
        return INTERPRETED
    if layout.dtype is torch.float32:
        return _wide(stage, layout, rows)
    if stage in ("matrix", "bias"):
        return Config(128, 128, 32, 4, 5 if arch in HOPPER else 2)
    sums = len(layout.columns) if stage == "up" else 1
    block_m, deep = rows_of_tile(rows), 3 if arch in HOPPER else 2
    if block_m <= 32:
        return Config(block_m, share(64, sums), 128, 4, deep)
    parts = 2 if stage == "hidden" else 1
    if block_m == 64 or arch not in HOPPER:
        warps = 4 if block_m == 64 else 8
        return Config(block_m, share(128, sums), 64, warps, deep, parts=parts)
    busy = stage == "up" and (layout.spec.weights_first or any(layout.biases[:-1]))
    if stage == "hidden":
        return Config(block_m, 128, 64, 8, 4, parts=parts)
    return Config(block_m, share(128 if busy else 256, sums), 64, 8, deep)


HOPPER = ("sm_90", "sm_100")
"""And what came after it: a program has registers, or tensor memory, for wide tiles."""


def _wide(stage: str, layout: Layout, rows: float) -> Config:
    """fp32 is multiplied without tensor cores, in registers."""
    if stage in ("matrix", "bias"):
        return Config(64, 64, 32, 4, 2)
    sums = len(layout.columns) if stage in ("up", "hidden") else 1
    block_m = min(rows_of_tile(rows), 64)
    return Config(block_m, share(32 if block_m <= 32 else 64, sums), 32, 4, 2)


def share(columns: int, sums: int) -> int:
    """Columns of each of several sums, a power of two, that are so many together."""
    return max(16, 1 << (columns // sums).bit_length() - 1)
