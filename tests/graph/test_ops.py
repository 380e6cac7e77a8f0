"""Many spellings, one operator with bound arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.ops import FUNCTIONS, SIGNATURES, Kind

from .capture import captured, last

X = torch.randn(4, 4)
M = X > 0

SPELLINGS: dict[str, list[Callable[[Tensor, Tensor], Any]]] = {
    "softmax": [
        lambda x, m: x.softmax(-1),
        lambda x, m: x.softmax(dim=-1),
        lambda x, m: F.softmax(x, -1),
        lambda x, m: F.softmax(x, dim=-1),
        lambda x, m: torch.softmax(x, -1),
        lambda x, m: torch.softmax(input=x, dim=-1),
        lambda x, m: torch.special.softmax(x, -1),
        lambda x, m: torch.nn.Softmax(-1)(x),
    ],
    "div": [
        lambda x, m: x / 3,
        lambda x, m: torch.div(x, 3),
        lambda x, m: x.div(3),
        lambda x, m: torch.true_divide(x, 3),
        lambda x, m: torch.divide(x, 3),
    ],
    "mul": [lambda x, m: x * x, lambda x, m: torch.mul(x, x), lambda x, m: x.multiply(x)],
    "reshape": [
        lambda x, m: x.view(2, 8),
        lambda x, m: x.reshape(2, 8),
        lambda x, m: x.reshape((2, 8)),
        lambda x, m: torch.reshape(x, (2, 8)),
    ],
    "transpose": [
        lambda x, m: x.transpose(0, 1),
        lambda x, m: x.swapaxes(0, 1),
        lambda x, m: torch.swapdims(x, 0, 1),
        lambda x, m: torch.transpose(x, dim0=0, dim1=1),
    ],
    "permute": [
        lambda x, m: x.permute(1, 0),
        lambda x, m: x.permute((1, 0)),
        lambda x, m: torch.permute(x, (1, 0)),
    ],
    "matmul": [lambda x, m: x @ x, lambda x, m: torch.matmul(x, x), lambda x, m: x.matmul(x)],
    "masked_fill": [
        lambda x, m: x.masked_fill(m, 0.5),
        lambda x, m: torch.masked_fill(x, m, 0.5),
        lambda x, m: x.masked_fill(mask=m, value=0.5),
    ],
    "where": [
        lambda x, m: torch.where(m, x, 0.5),
        lambda x, m: x.where(m, 0.5),
    ],
    "cat": [lambda x, m: torch.cat([x, x], -1), lambda x, m: torch.concat([x, x], dim=-1)],
    "dropout": [lambda x, m: F.dropout(x, 0.1, True), lambda x, m: torch.dropout(x, 0.1, True)],
    "bitwise_and": [lambda x, m: m & m, lambda x, m: m.bitwise_and(m), lambda x, m: m.__and__(m)],
    "bitwise_not": [lambda x, m: ~m, lambda x, m: torch.bitwise_not(m)],
    "gt": [lambda x, m: x > 0, lambda x, m: torch.gt(x, 0), lambda x, m: torch.greater(x, 0)],
}
CASES = [(name, i) for name, forms in SPELLINGS.items() for i in range(len(forms))]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_spellings_are_one_operator(name: str, index: int) -> None:
    view = captured(SPELLINGS[name][index], (X, M))
    op = view.op(last(view))
    first = captured(SPELLINGS[name][0], (X, M))
    model = first.op(last(first))
    assert (op.name, op.kind, op.inplace) == (name, model.kind, False)
    ignored = {"_stacklevel"}
    assert {k: _plain(v) for k, v in op.args.items() if k not in ignored} == {
        k: _plain(v) for k, v in model.args.items() if k not in ignored
    }


def _plain(argument: Any) -> Any:
    """Nodes compare by the input that they are."""
    if isinstance(argument, torch.fx.Node):
        return str(argument.target)
    if isinstance(argument, (tuple, list)):
        return tuple(map(_plain, argument))
    return argument


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.mul_(2),
        lambda x: torch.relu_(x),
        lambda x: F.relu(x, inplace=True),
        lambda x: operator.iadd(x, 1),
    ],
)
def test_in_place(fn: Callable[[Tensor], Tensor]) -> None:
    view = captured(lambda x: fn(x.clone()) + 1, (X,))
    assert len(view.mutations) == 1
    assert any(view.op(n).inplace for n in view.nodes)


def test_out_is_a_mutation() -> None:
    view = captured(lambda x, y: torch.add(x, 1, out=y), (X, torch.empty(4, 4)))
    assert view.mutations
    assert all(view.op(n).kind is not Kind.POINTWISE for n in view.nodes)


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (lambda x: x[None], Kind.VIEW),
        (lambda x: x[:, None, ...], Kind.VIEW),
        (lambda x: x[1:], Kind.SLICE),
        (lambda x: x[0], Kind.SLICE),
        (lambda x: x + x.sum(), Kind.POINTWISE),
        (lambda x: x.cumsum(-1), Kind.OTHER),
        (lambda x: x.log_softmax(-1), Kind.OTHER),
        (lambda x: torch.einsum("ij,jk->ik", x, x), Kind.CONTRACT),
        (lambda x: torch.einsum(x, [0, 1], x, [1, 2], [0, 2]), Kind.CONTRACT),
    ],
)
def test_kinds(fn: Callable[[Tensor], Tensor], kind: Kind) -> None:
    view = captured(fn, (X,))
    assert view.op(last(view)).kind is kind


@pytest.mark.parametrize(("fn", "name"), [(lambda x: x.mT.sin(), "mT"), (lambda x: x.T.sin(), "T")])
def test_attributes_are_views(fn: Callable[[Tensor], Tensor], name: str) -> None:
    view = captured(fn, (X,))
    (source,) = last(view).all_input_nodes
    assert view.op(source).kind is Kind.VIEW
    assert view.op(source).name in (name, "transpose", "permute")


def test_arithmetic_on_sizes_is_not_pointwise() -> None:
    view = captured(lambda x: x.reshape(x.shape[0] * 2, -1), (X,), dynamic=True)
    sizes = [n for n in view.nodes if n.target is operator.mul]
    assert sizes
    assert all(view.op(n).kind is Kind.OTHER for n in sizes)


def test_every_function_has_a_signature() -> None:
    assert {name for name, _ in FUNCTIONS.values()} <= set(SIGNATURES)


@pytest.mark.parametrize("kept", [True, False])
def test_switched_off_dropout_draws_nothing(kept: bool) -> None:
    view = captured(lambda x: F.dropout(x, 0.1, training=kept), (X,))
    assert bool(view.random_positions) is kept
