"""What a mask is: absent, causal, or some other set of positions; and whether rows keep a key."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from .affine import HUGE


class MaskKind(Enum):
    """The structure of a mask whose values are known while compiling."""

    NONE = "none"
    CAUSAL = "causal"
    """Query i sees keys 0..i."""
    WINDOW = "sliding window"
    CHUNKED = "chunked"
    PREFIX = "prefix"
    OTHER = "explicit"


@dataclass(frozen=True)
class MaskFacts:
    """What was proved of a mask.

    Attributes:
        kind: its structure.
        width: of the window or chunk, in keys.
        full_rows: every query keeps at least one key.
    """

    kind: MaskKind
    full_rows: bool
    width: int = 0

    def __str__(self) -> str:
        return f"{self.kind.value} {self.width}" if self.width else self.kind.value


def keep_of(bias: torch.Tensor) -> torch.Tensor | None:
    """The kept positions of an additive mask made of zeros and huge negative numbers, or None."""
    if bias.dtype is torch.bool:
        return bias
    zero = bias == 0
    return zero if bool((zero | (bias <= -HUGE)).all()) else None


def classify(keep: torch.Tensor, rows: int, keys: int) -> MaskFacts:
    """Structure of a boolean mask that broadcasts against (B, H, rows, keys).

    The first slice is compared with what each structure would be, exactly, at every position; then
    all slices with the first.
    """
    keep = keep.expand(*keep.shape[:-2], rows, keys)
    full_rows = bool(keep.any(-1).all())
    first = keep.reshape(-1, rows, keys)[0]
    if not bool((keep == first).all()):
        return MaskFacts(MaskKind.OTHER, full_rows)
    if bool(first.all()):
        return MaskFacts(MaskKind.NONE, full_rows)
    i, j = torch.arange(rows)[:, None], torch.arange(keys)[None]
    if torch.equal(first, j <= i):
        return MaskFacts(MaskKind.CAUSAL, full_rows)
    width = int(first.sum(-1).max())
    if width == 0:
        return MaskFacts(MaskKind.OTHER, full_rows)
    if rows == keys and torch.equal(first, (j <= i) & (j > i - width)):
        return MaskFacts(MaskKind.WINDOW, full_rows, width)
    if rows == keys and torch.equal(first, (j <= i) & (j // width == i // width)):
        return MaskFacts(MaskKind.CHUNKED, full_rows, width)
    prefix = int(first[0].sum())
    if rows == keys and torch.equal(first, (j <= i) | (j < prefix)):
        return MaskFacts(MaskKind.PREFIX, full_rows, prefix)
    return MaskFacts(MaskKind.OTHER, full_rows)
