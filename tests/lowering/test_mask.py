"""What a mask is, compared position by position with what each structure would be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fuser.lowering.attention.mask import MaskKind, classify, keep_of


def positions(rows: int, keys: int) -> tuple[Tensor, Tensor]:
    return torch.arange(rows)[:, None], torch.arange(keys)[None]


def structured(kind: MaskKind, width: int, rows: int, keys: int) -> Tensor:
    i, j = positions(rows, keys)
    match kind:
        case MaskKind.NONE:
            return torch.ones(rows, keys, dtype=torch.bool)
        case MaskKind.CAUSAL:
            return j <= i
        case MaskKind.WINDOW:
            return (j <= i) & (j > i - width)
        case MaskKind.CHUNKED:
            return (j <= i) & (j // width == i // width)
        case _:
            return (j <= i) | (j < width)


@pytest.mark.parametrize(
    ("kind", "width"),
    [
        (MaskKind.NONE, 0),
        (MaskKind.CAUSAL, 0),
        (MaskKind.WINDOW, 3),
        (MaskKind.CHUNKED, 4),
        (MaskKind.PREFIX, 5),
    ],
)
@pytest.mark.parametrize("lead", [(), (1,), (2, 1), (2, 3)])
def test_structures(kind: MaskKind, width: int, lead: tuple[int, ...]) -> None:
    keep = structured(kind, width, 13, 13).expand(*lead, 13, 13)
    found = classify(keep, 13, 13)
    assert (found.kind, found.width, found.full_rows) == (kind, width, True)


@pytest.mark.parametrize("keys", [9, 17])
def test_causal_from_the_start_and_from_the_end(keys: int) -> None:
    """`is_causal` aligns at the start; a triangle at the end is something else."""
    i, j = positions(13, keys)
    assert classify(j <= i, 13, keys).kind is MaskKind.CAUSAL
    assert classify(j <= i + keys - 13, 13, keys).kind is not MaskKind.CAUSAL


def test_slices_that_differ() -> None:
    keep = torch.stack([structured(MaskKind.CAUSAL, 0, 5, 5), torch.ones(5, 5, dtype=torch.bool)])
    assert classify(keep, 5, 5).kind is MaskKind.OTHER


def test_padding_broadcasts_over_queries() -> None:
    keep = torch.tensor([True, True, False, False])
    found = classify(keep[None], 3, 4)
    assert (found.kind, found.full_rows) == (MaskKind.OTHER, True)
    assert not classify(torch.zeros(1, 4, dtype=torch.bool), 3, 4).full_rows


def test_strict_triangle_has_an_empty_row() -> None:
    i, j = positions(6, 6)
    assert not classify(j < i, 6, 6).full_rows


KINDS = [MaskKind.NONE, MaskKind.CAUSAL, MaskKind.WINDOW, MaskKind.CHUNKED, MaskKind.PREFIX]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.integers(2, 9),
    width=st.integers(1, 9),
    flip=st.none() | st.tuples(st.integers(0, 8), st.integers(0, 8)),
)
def test_what_is_claimed_holds_at_every_position(
    kind: MaskKind, size: int, width: int, flip: tuple[int, int] | None
) -> None:
    keep = structured(kind, width, size, size).clone()
    if flip is not None:
        keep[flip[0] % size, flip[1] % size] ^= True
    found = classify(keep, size, size)
    assert found.full_rows == bool(keep.any(-1).all())
    if found.kind is not MaskKind.OTHER:
        assert torch.equal(keep, structured(found.kind, found.width, size, size))


@pytest.mark.parametrize("fill", [-torch.inf, torch.finfo(torch.float32).min])
def test_additive_masks(fill: float) -> None:
    keep = structured(MaskKind.CAUSAL, 0, 4, 4)
    found = keep_of(torch.zeros(4, 4).masked_fill(~keep, fill))
    assert found is not None
    assert torch.equal(found, keep)
    assert keep_of(keep) is keep


@pytest.mark.parametrize("other", [-1e4, 0.5, torch.inf, torch.nan])
def test_other_biases_are_no_masks(other: float) -> None:
    bias = torch.zeros(4, 4)
    bias[1, 2] = other
    assert keep_of(bias) is None
