"""Views that bring a tensor with known axes into another arrangement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fuser.graph.arrange import Expand, Permute, Reshape, Select, Step, steps
from fuser.graph.axes import Axis, Dims, Unproven


def apply(x: Tensor, wanted: Sequence[Step]) -> Tensor:
    for step in wanted:
        match step:
            case Reshape(shape):
                x = x.reshape(shape)
            case Permute(order):
                x = x.permute(order)
            case Expand(shape):
                x = x.expand(shape)
            case Select(dim, index):
                x = x.select(dim, index)
    return x


A, B, C, D = (Axis(n, h) for n, h in ((2, "a"), (3, "b"), (4, "c"), (5, "d")))
LETTERS = {A: "a", B: "b", C: "c", D: "d"}


def expected(x: Tensor, dims: Dims, target: Dims, materialise: bool) -> Tensor:
    """The same by an einsum over the opened axes."""
    have = [axis for dim in dims for axis in dim]
    want = [axis for dim in target for axis in dim]
    shape = [axis.size for axis in have]
    opened = x.reshape(shape)
    order = [a for a in want if a in have]
    opened = opened.permute([have.index(a) for a in order])
    at = {a: i for i, a in enumerate(order)}
    for i, axis in enumerate(want):
        if axis not in at:
            opened = opened.unsqueeze(i)
    full = opened.expand([a.size for a in want])
    out = full.reshape([_size(d) for d in target])
    if materialise:
        return out
    for i, dim in enumerate(target):
        if dim and not set(dim) & set(have):
            out = out.narrow(i, 0, 1)
    return out


def _size(dim: Sequence[Axis]) -> int:
    total = 1
    for axis in dim:
        total *= int(axis.size)
    return total


@st.composite
def _grouped(draw: st.DrawFn, axes: Sequence[Axis]) -> Dims:
    order = draw(st.permutations(axes))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(order) - 1)))))
    bounds = [0, *(c for c in cuts if c < len(order)), len(order)]
    groups = [tuple(order[i:j]) for i, j in pairwise(bounds)]
    if draw(st.booleans()):
        groups.insert(draw(st.integers(0, len(groups))), ())
    return tuple(groups)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.data(), st.booleans())
def test_every_arrangement(data: st.DataObject, materialise: bool) -> None:
    """Against the same arrangement by hand, with axes missing."""
    kept = data.draw(st.sets(st.sampled_from([A, B, C, D]), min_size=1))
    dims = data.draw(_grouped(sorted(kept, key=lambda a: a.hint)))
    target = data.draw(_grouped([A, B, C, D]))
    shape = [_size(d) for d in dims]
    total = 1
    for size in shape:
        total *= size
    x = torch.arange(total).reshape(shape)
    found = apply(x, steps(dims, target, materialise=materialise))
    torch.testing.assert_close(found, expected(x, dims, target, materialise))


def test_nothing_to_do() -> None:
    assert steps(((A,), (B, C)), ((A,), (B, C))) == []


def test_an_axis_without_a_place() -> None:
    with pytest.raises(Unproven):
        steps(((A,), (B,)), ((A,),))


def test_a_diagonal() -> None:
    with pytest.raises(Unproven):
        steps(((A,), (A,)), ((A,), (B,)))


@pytest.mark.parametrize("index", [0, 3])
def test_a_fixed_axis_is_selected(index: int) -> None:
    x = torch.arange(24).reshape(2, 12)
    found = apply(x, steps(((A,), (B, C)), ((B,), (A,)), fixed={C: index}))
    torch.testing.assert_close(found, x.reshape(2, 3, 4)[..., index].mT)
