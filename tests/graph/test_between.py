"""What stands between two places, also where it gets there through memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fuser.graph.between import Between

from .capture import captured, last, named


def test_what_is_made_of_the_starts() -> None:
    def model(x: Tensor, y: Tensor) -> Tensor:
        return (x.exp() * y.cos()).sin()

    view = captured(model, [torch.ones(2), torch.ones(2)])
    between = Between(view, {named(view, "exp")}, len(view.nodes))
    assert named(view, "exp") not in between
    assert named(view, "cos") not in between
    assert named(view, "mul") in between
    assert last(view) in between


def test_nothing_behind_the_end() -> None:
    view = captured(lambda x: x.exp().sin(), [torch.ones(2)])
    end = view.order[named(view, "sin")]
    assert named(view, "sin") not in Between(view, {named(view, "exp")}, end)


def test_what_is_written_into_memory_that_was_there() -> None:
    def model(x: Tensor, y: Tensor) -> Tensor:
        room, other = torch.zeros(2), torch.zeros(2)
        other.add_(y)
        room.add_(x.exp())
        return room.cos() + other

    view = captured(model, [torch.ones(2), torch.ones(2)])
    between = Between(view, {named(view, "exp")}, len(view.nodes))
    room, other = (n for n in view.nodes if n.op == "call_function" and n.target is torch.zeros)
    assert room in between
    assert other not in between
    assert [n.args[0] for n in between.writers(room)] == [room]
    assert between.writers(other) == []
