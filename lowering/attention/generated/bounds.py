"""Which tiles a program of a kernel visits, and which of them need no mask."""

from __future__ import annotations

from dataclasses import dataclass

from ...triton.source import Source
from .layout import Layout


@dataclass(frozen=True)
class Loop:
    """A loop over tiles.

    Attributes:
        first, end: names of the range of positions.
        edges: positions of a tile may lie outside of the tensors.
        masked: the mask of the spec may leave some of a tile out.
        about: what these tiles are.
    """

    first: str
    end: str
    edges: bool
    masked: bool
    about: str


def keys_of_rows(
    write: Source, layout: Layout, *, low: str = "", high: str = ""
) -> tuple[Loop, ...]:
    """The tiles of keys that a tile of queries sees.

    Args:
        write: takes the lines that compute the bounds.
        layout: of the attention.
        low, high: what a split is confined to; nothing for all keys.
    """
    write(f"low = {low or 0}")
    write(f"high = {high or 'SK'}")
    if layout.spec.mask is not None:
        return (Loop("low", "high", True, True, "tiles of keys"),)
    write("whole = low + (high - low) // BLOCK_N * BLOCK_N")
    return (
        Loop("low", "whole", False, False, "whole tiles of keys"),
        Loop("whole", "high", True, False, "the keys that are left"),
    )


def rows_of_keys(write: Source, layout: Layout) -> tuple[Loop, ...]:
    """The tiles of queries that see a tile of keys."""
    write("low = 0")
    write("high = SQ")
    masked = layout.spec.mask is not None
    return (Loop("low", "high", True, masked, "tiles of queries"),)
