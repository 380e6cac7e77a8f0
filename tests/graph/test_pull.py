"""Axes of inputs from axes of results, checked against what torch does to positions.

Each axis of the result is given numbers; the rule says which of the input's elements they come
from, and the operator itself must agree.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fuser.graph.axes import Axis, Dims, Unproven, fresh, leaves, resolve
from fuser.graph.ops import Kind, value
from fuser.graph.pull import Contraction, is_contraction, pull_contraction, pull_view

from .capture import captured, last

X = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(6, 20),
    "split": lambda x: x.reshape(2, 3, 2, 2, 5),
    "flatten": lambda x: x.flatten(1, 2),
    "unflatten": lambda x: x.unflatten(2, (2, 2)),
    "unsqueeze": lambda x: x.unsqueeze(-2),
    "index": lambda x: x[:, None, :, :, None],
    "squeeze": lambda x: x.unsqueeze(2).squeeze(2),
    "permute": lambda x: x.permute(0, 2, -1, 1),
    "transpose": lambda x: x.transpose(-3, 2),
    "mT": lambda x: x.mT.clone(),
    "movedim": lambda x: x.movedim(1, -1),
    "movedim of two": lambda x: x.movedim((0, 1), (2, 0)),
    "expand": lambda x: x[:, None].expand(-1, 6, -1, -1, -1),
    "expand in front": lambda x: x.expand(7, -1, -1, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 3, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
    "tile": lambda x: x.tile(2, 1, 1),
    "chain": lambda x: x.permute(0, 2, 1, 3).reshape(2, 4, 15).transpose(1, 2).unflatten(1, (3, 5)),
}


def _read(dims: Dims, positions: dict[Axis, int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index that axes at these positions stand for."""
    index: list[int] = []
    for dim in resolve(dims):
        at = 0
        for axis in dim:
            at = at * int(axis.size) + positions[axis]
        index.append(at)
    assert all(i < n for i, n in zip(index, shape, strict=True))
    return tuple(index)


def _all_positions(dims: Dims) -> list[dict[Axis, int]]:
    axes = leaves(dims)
    grid = torch.cartesian_prod(*(torch.arange(int(a.size)) for a in axes)).reshape(-1, len(axes))
    return [dict(zip(axes, row, strict=True)) for row in grid.tolist()]


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    view = captured(VIEWS[name], (X,))
    result = VIEWS[name](X)
    node = last(view)
    dims = top = fresh(result.shape)
    while node.op != "placeholder":
        op = view.op(node)
        if op.name == "clone":
            node = op.args["input"]
            continue
        node, dims = pull_view(op, node, dims)
    for positions in _all_positions(resolve(top)):
        source = X[_read(dims, positions, X.shape)]
        assert source == result[_read(top, positions, result.shape)]


def test_a_slice_in_between_is_left_to_others() -> None:
    view = captured(lambda x: x[:, :1].expand(-1, 6, -1, -1), (X,))
    node = last(view)
    source, dims = pull_view(view.op(node), node, fresh(value(node).shape))
    assert dims[1] == ()
    assert view.op(source).kind is Kind.SLICE


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.reshape(3, 2, 4, 5),
        lambda x: x.permute(0, 2, 1, 3).reshape(2, 3, 4, 5),
        lambda x: x.flatten().repeat_interleave(3),
    ],
    ids=["exchanged", "reinterpreted", "over everything"],
)
def test_mixtures_are_unproven(fn: Callable[[Tensor], Tensor]) -> None:
    view = captured(fn, (X,))
    node = last(view)
    with pytest.raises(Unproven):
        pull_view(view.op(node), node, fresh(value(node).shape))


A, B = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5, 6)
CONTRACTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda a, b: a @ b,
    "broadcast batch": lambda a, b: a @ b[:1, :1].clone(),
    "bmm": lambda a, b: torch.bmm(a.flatten(0, 1), b.flatten(0, 1)),
    "einsum": lambda a, b: torch.einsum("bhqd,bhdk->bhqk", a, b),
    "einsum permuted": lambda a, b: torch.einsum("bhqd,bhdk->kqbh", a, b),
    "einsum ellipsis": lambda a, b: torch.einsum("...qd,...dk->...qk", a, b),
    "einsum implicit": lambda a, b: torch.einsum("bhqd,bhdk", a, b),
    "einsum over two": lambda a, b: torch.einsum("bhqd,bhdk->bqk", a, b),
    "einsum sublists": lambda a, b: torch.einsum(a, [0, 1, 2, 3], b, [0, 1, 3, 4], [0, 1, 2, 4]),
}


def _einsum(c: Contraction, a: Tensor, b: Tensor, dims: Dims) -> Tensor:
    """The product that the pulled axes describe."""
    names: dict[Axis, str] = {}
    result = resolve(dims)

    def letters(wanted: Dims) -> str:
        return "".join(names.setdefault(x, chr(97 + len(names))) for x in leaves(wanted))

    def opened(x: Tensor, d: Dims) -> Tensor:
        return x.reshape([int(axis.size) for axis in leaves(d)])

    left, right = letters(c.a_dims), letters(c.b_dims)
    out = torch.einsum(
        f"{left},{right}->{letters(result)}", opened(a, c.a_dims), opened(b, c.b_dims)
    )
    return out.reshape([int(torch.tensor([x.size for x in d] or [1]).prod()) for d in result])


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_contractions(name: str) -> None:
    fn = CONTRACTIONS[name]
    view = captured(fn, (A, B))
    node = last(view)
    op = view.op(node)
    assert is_contraction(op)
    dims = fresh(value(node).shape)
    c = pull_contraction(op, node, dims)
    given = {"a": A, "b": B}
    if name == "bmm":
        given = {"a": A.flatten(0, 1), "b": B.flatten(0, 1)}
    if name == "broadcast batch":
        given["b"] = B[:1, :1]
    torch.testing.assert_close(_einsum(c, given["a"], given["b"], dims), fn(A, B))


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b: torch.einsum("bhqd,bgde->bhqe", a, b),
        lambda a, b: torch.einsum("bhqd,bhde->bhe", a, b),
        lambda a, b: a @ b[0, 0, :, 0],
    ],
    ids=["sums one operand's heads", "sums the queries", "a vector"],
)
def test_products_that_are_no_contraction_of_two(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    view = captured(fn, (A, B))
    node = last(view)
    with pytest.raises(Unproven):
        pull_contraction(view.op(node), node, fresh(value(node).shape))


def test_an_einsum_with_a_diagonal() -> None:
    square = torch.randn(4, 4)
    view = captured(lambda a, b: torch.einsum("ii,ij->ij", a, b), (square, square))
    node = last(view)
    with pytest.raises(Unproven, match="diagonal"):
        pull_contraction(view.op(node), node, fresh(value(node).shape))
