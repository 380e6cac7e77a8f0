"""Which tiles a program of a kernel visits, and which of them need no mask.

From the spec's mask, `tiles` tells the positions outside of which nothing of a tile is kept and
those inside of which everything is. Here that becomes loops over whole tiles:

    low ...... full_low ============ full_high ...... high
      masked            not masked             masked, and the end

Where data decides, `block_table` has listed the tiles before.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ...triton.source import Source
from .. import tiles
from ..conditions import BATCHES, HEADS, IB, IH, KEYS, ROWS
from ..text import print_expr
from .layout import Layout

_NAMES = {
    ROWS.name: "SQ", KEYS.name: "SK", HEADS.name: "H", BATCHES.name: "B", IB.name: "b32",
    IH.name: "h32", tiles.FIRST_ROW.name: "start_row", tiles.FIRST_KEY.name: "start_key",
}  # fmt: skip
"""What the symbols of an expression are called in kernels, all of them int32."""


@dataclass(frozen=True)
class Loop:
    """A loop over tiles.

    Attributes:
        first, end: names of the range of positions; `first` is a multiple of the tile's size.
        edges: positions of a tile may lie outside of the tensors.
        masked: the mask of the spec may leave some of a tile out.
        about: what these tiles are.
        listed: the range is one of places in a list of tiles, which `block_table` makes.
    """

    first: str
    end: str
    edges: bool
    masked: bool
    about: str
    listed: bool = False


def listed(layout: Layout, what: str) -> tuple[Loop, ...]:
    """Loops over the tiles that a table lists."""
    found = layout.visible
    assert found is not None
    masked = layout.spec.mask is not None
    if not (masked and found.in_mask):
        return (Loop("0", "visited", True, masked, f"tiles of {what} that are seen", True),)
    return (
        Loop("0", "partial", True, True, f"tiles of {what} that are seen in part", True),
        Loop("partial", "visited", False, False, f"tiles of {what} that are seen whole", True),
    )


def keys_of_rows(
    write: Source, layout: Layout, *, packed: bool = False, split: bool = False
) -> tuple[Loop, ...]:
    """The tiles of keys that a tile of queries sees.

    Args:
        write: takes the lines that compute the bounds.
        layout: of the attention.
        packed: the tile has queries of all heads that share a key head.
        split: they are confined to the range from `part_low` to `part_high`.
    """
    low, high = ("part_low", "part_high") if split else ("0", "SK")
    mask = layout.spec.mask
    if mask is None:
        write(f"low = {low}")
        write(f"high = {high}")
        if layout.whole_keys:
            return (Loop("low", "high", False, False, "tiles of keys"),)
        write("whole = low + (high - low) // BLOCK_N * BLOCK_N")
        return (
            Loop("low", "whole", False, False, "whole tiles of keys"),
            Loop("whole", "high", True, False, "the keys that are left"),
        )
    if layout.two_passes or layout.exceeds(mask):  # what `probs` makes of a zero may be no zero
        write(f"low = {low}")
        write(f"high = {high}")
        return (Loop("low", "high", True, True, "tiles of keys"),)
    found = tiles.keys_of_rows(mask, heads=packed)
    if packed:
        write("start_row = 0")
    _define(write, found, packed)
    return _loops(write, found, low, high, "BLOCK_N", "keys", KEYS, merged=False)


def rows_of_keys(write: Source, layout: Layout) -> tuple[Loop, ...]:
    """The tiles of queries, of every head that shares a key head, that see a tile of keys."""
    mask = layout.spec.mask
    if mask is None or layout.two_passes or layout.exceeds(mask):
        write("low = 0")
        write("high = SQ")
        return (Loop("low", "high", True, mask is not None, "tiles of queries"),)
    found = tiles.rows_of_keys(mask, heads=True)
    _define(write, found, True)
    return _loops(write, found, "0", "SQ", "BLOCK_M", "queries", ROWS, merged=True)


def _define(write: Source, found: tiles.Bounds, heads: bool) -> None:
    """Positions of the tile that its bounds are computed from."""
    symbols: set[sympy.Basic] = set()
    for expr in (found.low, found.high, found.full_low, found.full_high):
        symbols |= set() if expr is None else expr.free_symbols
    last = "SQ" if heads else "tl.minimum(start_row + BLOCK_M, SQ)"
    lines = {
        tiles.LAST_ROW: f"last_row = {last} - 1",
        tiles.LAST_KEY: "last_key = tl.minimum(start_key + BLOCK_N, SK) - 1",
        tiles.FIRST_HEAD: "first_head = (hk * GROUP).to(tl.int32)",
        tiles.LAST_HEAD: "last_head = (hk * GROUP + GROUP - 1).to(tl.int32)",
        IB: "b32 = b.to(tl.int32)",
        IH: "h32 = h.to(tl.int32)",
    }
    for symbol, line in lines.items():
        if symbol in symbols:
            write(line)


def _loops(
    write: Source,
    found: tiles.Bounds,
    low: str,
    high: str,
    block: str,
    what: str,
    size: sympy.Symbol,
    *,
    merged: bool,
) -> tuple[Loop, ...]:
    """Loops over one dimension; `merged`: what is left at the end costs a whole tile nothing."""
    write(f"low = {_largest(low, found.low)} // {block} * {block}")
    write(f"high = tl.maximum({_least(high, found.high)}, low)")
    if found.full_low is None or found.full_high is None:
        return (Loop("low", "high", True, True, f"tiles of {what}"),)
    to_end = merged and found.full_high == size
    loops: list[Loop] = []
    write(f"full_high = {_least('high', found.full_high)}")
    if not to_end:
        write(f"full_high = tl.maximum(full_high // {block} * {block}, low)")
    if found.full_low == 0:
        write("full_low = tl.minimum(low, full_high)")
    else:
        write(f"full_low = tl.cdiv({_largest('low', found.full_low)}, {block}) * {block}")
        write("full_low = tl.minimum(full_low, full_high)")
        if to_end:
            write(f"full_low = tl.cdiv(full_low, {block}) * {block}")
        edges = to_end  # the last tile may be the first whole one
        loops.append(Loop("low", "full_low", edges, True, f"{what} on the edge of the mask"))
    loops.append(Loop("full_low", "full_high", to_end, False, f"whole tiles of {what}"))
    if not to_end:
        loops.append(Loop("full_high", "high", True, True, f"the {what} that are left"))
    return tuple(loops)


def _largest(bound: str, expr: sympy.Expr | None) -> str:
    if expr is None or expr == 0:
        return bound
    return f"tl.maximum({_text(expr)}, {bound})"


def _least(bound: str, expr: sympy.Expr | None) -> str:
    return bound if expr is None else f"tl.minimum({_text(expr)}, {bound})"


def _text(expr: sympy.Expr) -> str:
    return print_expr(expr, _NAMES)
