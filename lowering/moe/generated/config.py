"""How kernels are cut: by a rule from the rows that an expert has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layout import Layout

STAGES = ("sort", "place", "up", "down", "hidden", "tokens", "matrix", "bias")
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
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3
    group: int = 8


INTERPRETED = Config(16, 32, 32, group=2)
"""Small tiles, so that small sizes have several, with edges."""
SORTED = 1 << 14
"""Elements of the table of choices and experts that one program of `sort` holds."""


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
    if layout.interpreted:
        return INTERPRETED
    wide = layout.dtype is torch.float32
    if stage in ("matrix", "bias"):
        return Config(64, 64, 32, 4, 2) if wide else Config(128, 128, 64, 8, 3)
    block_m = min(rows_of_tile(rows), 64) if wide else rows_of_tile(rows)
    sums = len(layout.columns) if stage == "up" else 1
    if block_m <= 32:
        return Config(block_m, 64 // sums if not wide else 32, 64 if wide else 128, 4, 3)
    if wide:
        return Config(block_m, 64 // sums, 32, 4, 2)
    deep = 3 if arch in ("sm_90", "sm_100") else 2
    if arch == "gfx942":
        return Config(block_m, 128 // sums, 64, 8, 2)
    if block_m == 64:
        return Config(64, 128 // sums, 64, 4, deep)
    return Config(128, max(64, 256 // sums), 64, 8, deep)
