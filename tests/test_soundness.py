"""The central check: what a region may not do, on small graphs and any set of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal.two_tensor import TwoTensor

from fuser.graph.view import GraphView
from fuser.pattern import Match
from fuser.soundness import check, inputs_of, span
from tests.compiled import compiled
from tests.graph.capture import captured

X, Y = torch.randn(3, 4), torch.randn(3, 4)


def match(view: GraphView, names: Sequence[str], *, random: bool = False) -> Match:
    """The region from the first to the last of these operators; the last one is its output."""
    nodes = [n for n in view.nodes if view.op(n).name in names]
    return Match("test.region", nodes[-1], frozenset(nodes), (nodes[-1],), random=random)


def reason(
    fn: Callable[..., Any], names: str, inputs: Sequence[Tensor] = (X, Y), random: bool = False
) -> str:
    """Why the region of these operators may not be replaced; empty where it may."""
    view = captured(fn, inputs)
    declined = check(view, match(view, names.split(), random=random))
    return "" if declined is None else declined.reason


def _returned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    a = x.sin()
    return a.cos(), a


def _read_outside(x: Tensor, y: Tensor) -> Tensor:
    a = x.sin()
    return a.cos() + a.tan()


def _reenters(x: Tensor, y: Tensor) -> Tensor:
    a = x.sin()
    return a.cos() * (a * y)


def _written_between(x: Tensor, y: Tensor) -> Tensor:
    a = x.sin()
    z = y.clone()
    a = a + z
    z.zero_()
    return a.cos() + z


def _input_written(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    a = z.sin()
    z.zero_()
    return a.cos() + z


def _written_through_a_view(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    row = z[0]
    a = z.sin()
    row.fill_(1)
    return a.cos() + z


def _written_before(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z.zero_()
    return z.sin().cos()


def _written_after(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    a = z.sin().cos()
    z.zero_()
    return a + z


def _written_after_a_view_of_it(x: Tensor, y: Tensor) -> Tensor:
    """What is written comes from what was read: a part of a tensor is replaced."""
    z = y.clone()
    z[1:] = z[1:].view(2, 4).sin().cos()
    return z


def _view_of_what_is_written_after(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The result sees the write."""
    z = y.clone()
    part = z.view(4, 3).view(2, 6)
    z.zero_()
    return part, z


def _view_that_is_written_to(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The write to the result is seen in what it is a view of."""
    z = y.clone()
    part = z.view(4, 3).view(2, 6)
    part.zero_()
    return part, z


def _in_place_inside(x: Tensor, y: Tensor) -> Tensor:
    return x.sin().mul_(2).cos()


def _in_place_by_its_old_name(x: Tensor, y: Tensor) -> Tensor:
    a = x.sin()
    a.mul_(2)
    return a.cos()


def _in_place_seen(x: Tensor, y: Tensor) -> Tensor:
    a = x.sin()
    b = a[0]
    a.mul_(2)
    return a.cos() + b


def _in_place_first(x: Tensor, y: Tensor) -> Tensor:
    return (x + y).mul_(2).cos()


def _in_place_first_seen_later(x: Tensor, y: Tensor) -> Tensor:
    a = x + y
    b = a[0]
    c = a.mul_(2).cos()
    return c + b


def _in_place_first_of_an_input(x: Tensor, y: Tensor) -> Tensor:
    return x.mul_(2).cos()


def _in_place_first_of_a_view_of_an_input(x: Tensor, y: Tensor) -> Tensor:
    return x[1:].mul_(2).cos()


def _autocast_between(x: Tensor, y: Tensor) -> Tensor:
    a = x.sin()
    with torch.autocast("cpu", torch.bfloat16):
        b = a @ y.mT
    return b.float().cos()


def _random_between(x: Tensor, y: Tensor) -> Tensor:
    a = F.dropout(x, 0.5)
    b = torch.rand(3, 4)
    return a.cos() + b


@pytest.mark.parametrize(
    ("fn", "names", "expected"),
    [
        (lambda x, y: x.sin().cos() + y, "sin cos", ""),
        (_returned, "sin cos", "returned"),
        (_read_outside, "sin cos", "used elsewhere, by"),
        (_read_outside, "sin cos tan add", ""),
        (_reenters, "sin cos", "used elsewhere"),
        (_written_between, "sin add cos", "mutated"),
        (_input_written, "sin cos", "mutated"),
        (_written_through_a_view, "sin cos", "mutated"),
        (_written_before, "sin cos", ""),
        (_written_after, "sin cos", ""),
        (_in_place_inside, "sin mul cos", ""),
        (_written_after_a_view_of_it, "reshape sin cos", ""),
        (_view_of_what_is_written_after, "reshape", "a view of an input"),
        (_view_that_is_written_to, "reshape", "a view of an input"),
        (_in_place_by_its_old_name, "sin mul cos", "mutated"),
        (_in_place_seen, "sin mul cos", "elsewhere"),
        (_in_place_first, "mul cos", ""),
        (_in_place_first_seen_later, "mul cos", "mutated"),
        (_in_place_first_of_an_input, "mul cos", "mutated"),
        (_in_place_first_of_a_view_of_an_input, "mul cos", "mutated"),
        (_autocast_between, "sin matmul float cos", "autocast or grad mode"),
    ],
)
def test_reasons(fn: Callable[..., Any], names: str, expected: str) -> None:
    found = reason(fn, names)
    assert expected in found
    assert bool(found) == bool(expected)


def test_random_operators_keep_their_order() -> None:
    """Only a region that draws itself minds another one that does."""
    assert "random" in reason(_random_between, "dropout cos", random=True)
    assert reason(_random_between, "dropout cos") == ""


def test_span_and_inputs() -> None:
    view = captured(lambda x, y: (x.sin() + y).cos() * 2, (X, Y))
    region = match(view, ["sin", "add", "cos"])
    first, last = span(view, region)
    assert last - first == 2
    assert [n.op for n in inputs_of(region)] == ["placeholder"] * 2


def test_tensors_that_wrap_others() -> None:
    """What operators of ours would make of the parts of a DTensor, say, nobody has told them."""

    def attention(q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax(torch.tanh(q @ k.mT), -1) @ k

    q, k = torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8, 4)
    plain = compiled(attention, (q, k), **{"fuser.lowering": "reference"})
    assert plain.rewrites() == 1
    two = TwoTensor(q, q.clone())
    ours = compiled(attention, (two, k), inner="eager", **{"fuser.lowering": "reference"})
    assert ours.rewrites() == 0
    assert "`l_q_` is a TwoTensor, which wraps other tensors" in ours.reasons()
    assert not ours.record.failures
    torch.testing.assert_close(ours.outputs[0].b, plain.outputs[0])
