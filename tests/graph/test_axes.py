"""Axes: what a dimension stands for, never which size it has."""

from __future__ import annotations

import pytest
import sympy

from fuser.graph.axes import (
    Axis,
    Unproven,
    broadcast,
    fresh,
    leaves,
    regroup,
    resolve,
    same_size,
    size_of,
    split_dim,
)

N = sympy.Symbol("s0", positive=True, integer=True)


def test_fresh_axes_of_equal_size_differ() -> None:
    (a,), (b,), one = fresh((4, 4, 1))
    assert a is not b
    assert one == ()


def test_broadcast_aligns_at_the_end() -> None:
    dims = fresh((2, 3, 4))
    assert broadcast(dims, (3, 4)) == dims[1:]
    assert broadcast(dims, (2, 1, 4)) == (dims[0], (), dims[2])


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (5, 4)])
def test_broadcast_declines(shape: tuple[int, ...]) -> None:
    with pytest.raises(Unproven):
        broadcast(fresh((2, 3, 4)), shape)


def test_merge_then_split_gives_the_same_axes() -> None:
    dims = fresh((2, 3, 4))
    (merged, last) = regroup(dims, (6, 4))
    assert merged == (*dims[0], *dims[1])
    assert regroup((merged, last), (2, 3, 4)) == dims


def test_a_cut_axis_is_seen_by_all_holders() -> None:
    """Row-major: the first part is the outer one."""
    dims = fresh((12, 5))
    other = (dims[0],)
    parts = split_dim(dims[0], (3, 4))
    assert [size_of(p) for p in parts] == [3, 4]
    assert leaves(other) == (*parts[0], *parts[1])
    assert resolve(dims)[0] == (*parts[0], *parts[1])


def test_cut_at_another_place_is_unproven() -> None:
    dims = fresh((12,))
    split_dim(dims[0], (3, 4))
    with pytest.raises(Unproven):
        regroup(dims, (4, 3))


def test_exchanged_sizes_are_not_a_transposition() -> None:
    """A view of (4, 6) as (6, 4) mixes both axes."""
    with pytest.raises(Unproven):
        regroup(fresh((4, 6)), (6, 4))


@pytest.mark.parametrize("shape", [(2, 3), (4, 3), (2, 3, 2, 2)])
def test_sizes_that_do_not_add_up(shape: tuple[int, ...]) -> None:
    with pytest.raises(Unproven):
        regroup(fresh((2, 3, 2)), shape)


def test_symbols() -> None:
    dims = ((Axis(N),), (Axis(4),))
    (merged,) = regroup(dims, (4 * N,))
    assert same_size(size_of(merged), 4 * N)
    assert regroup((merged,), (N, 4)) == dims
    assert not same_size(N, 4)
    with pytest.raises(Unproven):
        regroup(dims, (2, 2 * N))
