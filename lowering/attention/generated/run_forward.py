"""The forward: one kernel, or two where the keys of a query are split over programs."""

from __future__ import annotations

import torch
from torch import Tensor

from ...triton.launch import Target
from .config import Config
from .layout import Layout
from .problem import Arguments, Problem, tiles

PACKED_ROWS = 16
"""Up to so many queries, all heads that share a key head are rows of one tile."""


def forward(of: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The result `(B, H, SQ, DV)`, and each query's maximum and sum of exponentials."""
    batch, heads, rows = of.rows
    sizes = of.sizes
    out = of.v.new_empty(batch, heads, rows, of.v.shape[-1], dtype=of.layout.spec.dtype)
    row_max, row_sum = (of.v.new_empty(batch, heads, rows, dtype=torch.float32) for _ in range(2))
    results = {"out": (out, "bhmd"), "row_max": (row_max, "bhm"), "row_sum": (row_sum, "bhm")}
    packed = bool(sizes["GROUP"] > 1 and rows <= PACKED_ROWS)  # a guard, where sizes are symbols
    together = rows * sizes["GROUP"] if packed else rows
    config = of.config("forward", rows=together)
    programs = tiles(together, config.block_m) * batch * sizes["HKV" if packed else "H"]
    splits = splits_of(of.layout, programs, tiles(sizes["SK"], config.block_n), of.target)
    if splits > 1:
        _split(of, packed, config, programs, splits, results)
        return out, row_max, row_sum
    listed = {} if packed else of.lists(config)
    of.launch("forward", (packed, False, bool(listed)), (programs,), config, {**results, **listed})
    return out, row_max, row_sum


def splits_of(layout: Layout, programs: int, key_tiles: int, target: Target) -> int:
    """Into how many parts the keys are cut, so that every processor has one, of two tiles or more.

    Not where probabilities must be whole: their sum is not known in any part.
    """
    if layout.two_passes or programs >= target.processors:
        return 1
    splits = max(1, min(target.processors // programs, key_tiles // 2))
    return tiles(key_tiles, tiles(key_tiles, splits))  # none of them is empty


def _split(
    of: Problem, packed: bool, config: Config, programs: int, splits: int, results: Arguments
) -> None:
    """Every part of the keys by itself, then all of them together."""
    shape = (splits, *of.rows)
    part = of.v.new_empty(*shape, of.v.shape[-1], dtype=torch.float32)
    part_max, part_sum = (of.v.new_empty(shape, dtype=torch.float32) for _ in range(2))
    parts = {
        "part": (part, "sbhmd"), "part_max": (part_max, "sbhm"), "part_sum": (part_sum, "sbhm"),
    }  # fmt: skip
    of.launch("forward", (packed, True, False), (programs, splits), config, parts, SPLITS=splits)
    combining = of.config("combine")
    grid = (tiles(of.rows[2], combining.block_m) * of.rows[0] * of.rows[1],)
    of.launch("combine", (), grid, combining, {**parts, **results}, SPLITS=splits)
