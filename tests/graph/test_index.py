"""Elements of masks at symbolic positions: every rule against the tensor itself, and what stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor

from fuser.graph.axes import Unproven
from fuser.graph.fold import Folder
from fuser.graph.index import IndexReader
from fuser.graph.ops import value
from fuser.graph.positional import Levels, Truth, Value, Whole
from fuser.torch_private import to_expr
from tests.graph.capture import captured, last

ROWS, KEYS = 6, 9
Mask = Callable[[int, int], Tensor]


def _packed(s: int) -> Tensor:
    """What transformers makes of position ids to tell packed sequences apart."""
    positions = torch.arange(s).unsqueeze(0).expand(2, -1)
    steps = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1)
    return (steps != 1).cumsum(-1)


def _gathered(s: int) -> Tensor:
    batch, q = torch.arange(2)[:, None, None, None], torch.arange(s)[None, None, :, None]
    k = torch.arange(s)[None, None, None, :]
    packed = _packed(s)
    return q.new_ones((), dtype=torch.bool) & (packed[batch, q] == packed[batch, k]) & (k <= q)


FOLLOWED: dict[str, Mask] = {
    "arange": lambda s, t: torch.arange(t)[None, :] <= torch.arange(s)[:, None],
    "start and step": lambda s, t: torch.arange(3, 3 + 2 * t, 2) - torch.arange(s)[:, None] > 4,
    "int32": lambda s, t: torch.arange(t, dtype=torch.int32) < torch.arange(s)[:, None],
    "floor": lambda s, t: torch.arange(t) // 4 == torch.arange(s)[:, None] // 4,
    "div floor": lambda s, t: torch.div(torch.arange(t), 4, rounding_mode="floor") * 2,
    "remainder": lambda s, t: torch.arange(t) % 3,
    "negative remainder": lambda s, t: (torch.arange(t) - 5) % 3,
    "slice": lambda s, t: torch.arange(t)[2:] - torch.arange(t)[:-2],
    "slice from the end": lambda s, t: torch.arange(t)[-1:],
    "position": lambda s, t: torch.arange(t)[1] + torch.arange(s)[-1] + torch.arange(s),
    "new axes": lambda s, t: torch.arange(s)[None, :, None] * 3,
    "views": lambda s, t: torch.arange(s).view(1, -1).transpose(0, 1).expand(s, t),
    "tril": lambda s, t: torch.ones(s, t, dtype=torch.bool).tril(2),
    "triu": lambda s, t: torch.full((s, t), float("-inf")).triu(1),
    "triu of ints": lambda s, t: torch.triu(torch.ones(s, t, dtype=torch.int64), diagonal=-1),
    "symbolic diagonal": lambda s, t: torch.ones(s, t).tril(t - s),
    "where": lambda s, t: torch.where(
        torch.arange(t) > torch.arange(s)[:, None], torch.zeros(()), -3.4e38
    ),
    "masked fill": lambda s, t: torch.zeros(s, t).masked_fill(
        torch.arange(t) > torch.arange(s)[:, None], float("-inf")
    ),
    "one minus": lambda s, t: (
        (1.0 - torch.ones(s, t).tril()) * torch.finfo(torch.float32).min
    ),
    "logic": lambda s, t: ~(torch.arange(t) > 2) | (torch.arange(s)[:, None] >= 4)
    ^ (torch.arange(t) == 3),
    "cast": lambda s, t: (torch.arange(t) < torch.arange(s)[:, None]).float() == 0,
    "truth of int": lambda s, t: torch.arange(t).bool(),
    "cumsum": lambda s, t: torch.ones(s, dtype=torch.int64).cumsum(0) - 1,
    "diff": lambda s, t: torch.diff(torch.arange(s), prepend=torch.zeros(1, dtype=torch.int64) - 1),
    "packed": lambda s, t: _packed(s),
    "gathered": lambda s, t: _gathered(s),
    "gather in the middle": lambda s, t: (
        (torch.arange(s)[:, None] + torch.arange(t))[:, torch.arange(s)[1:]]
    ),
    "repeat": lambda s, t: torch.arange(t).view(1, -1).repeat(s, 1),
    "summed in place": lambda s, t: _summed(s, t),
    "filled in place": lambda s, t: (torch.zeros(s, t) + 1.0).masked_fill_(
        torch.arange(t) > torch.arange(s)[:, None], -1.0
    ) * 2.0,
}  # fmt: skip


def _summed(s: int, t: int) -> Tensor:
    position = torch.arange(s)[:, None] * 0 + torch.arange(t)
    position += torch.arange(s)[:, None] + position * 2
    position -= 1
    return position * 2


def _in_place(s: int, t: int) -> Tensor:
    mask = torch.zeros(s, t)
    mask.masked_fill_(torch.arange(t) > torch.arange(s)[:, None], 1.0)
    return mask + 0


def _written_later(s: int, t: int) -> Tensor:
    mask = torch.ones(s, t, dtype=torch.bool)
    mask[0] = False
    return mask & True


def _view_of_what_is_written(s: int, t: int) -> Tensor:
    position = torch.arange(t) + 1
    view = position[None]
    position += 1
    return view * 2


STOPPED: dict[str, Mask] = {
    "a view of what is written": _view_of_what_is_written,
    "float positions": lambda s, t: torch.arange(t).float() <= torch.arange(s)[:, None],
    "float arange": lambda s, t: torch.arange(t, dtype=torch.float32) > 2,
    "narrow integers": lambda s, t: torch.arange(t, dtype=torch.int8) > 2,
    "products": lambda s, t: torch.arange(t) * torch.arange(s)[:, None] > 3,
    "a step": lambda s, t: torch.arange(2 * t)[::2],
    "true division": lambda s, t: torch.arange(t) / 2 > 1,
    "varying differences": lambda s, t: torch.diff(
        torch.arange(s), prepend=torch.zeros(1, dtype=torch.int64)
    ),
    "varying sum": lambda s, t: torch.arange(s).cumsum(0),
    "negative gather": lambda s, t: torch.arange(t)[torch.arange(t) - 2],
    "random": lambda s, t: torch.rand(s, t) > 0.5,
    "in place": _in_place,
    "written later": _written_later,
    "dtype view": lambda s, t: torch.arange(t).view(torch.int32),
}


def _read(mask: Mask, dynamic: bool) -> tuple[IndexReader, Value | None, Tensor, tuple[Any, ...]]:
    """The value at symbols i0, i1, ... and the sizes' own values."""
    x = torch.zeros(ROWS, KEYS)

    def program(x: Tensor) -> Tensor:
        return mask(x.shape[0], x.shape[1])

    view = captured(program, (x,), dynamic=dynamic)
    node = last(view)
    reader = IndexReader(Folder(view))
    symbols = tuple(reader._fresh(s) for s in map(to_expr, value(node).shape))
    try:
        found = reader.at(node, symbols)
    except Unproven:
        found = None
    sizes = {
        to_expr(value(p)): value(p).node.hint
        for p in view.nodes
        if p.op == "placeholder" and isinstance(value(p), torch.SymInt)
    }
    return reader, found, program(x), (symbols, sizes)


def _concrete(found: Value, where: dict[Any, Any]) -> Any:
    if isinstance(found, Whole):
        return int(found.expr.subs({k: _integer(v) for k, v in where.items()}))
    where = {k: _integer(v) for k, v in where.items()}
    if isinstance(found, Truth):
        return bool(found.condition.subs(where))
    assert isinstance(found, Levels)
    (level,) = (t for c, t in found.cases if bool(c.subs(where)))
    return level.item()


def _integer(number: int) -> Any:
    return sympy.Integer(number)


@pytest.mark.parametrize("name", FOLLOWED)
def test_every_element(name: str) -> None:
    _, found, expected, (symbols, sizes) = _read(FOLLOWED[name], dynamic=True)
    assert found is not None
    for position in torch.ones(expected.shape).nonzero().tolist():
        where = {**sizes, **dict(zip(symbols, position, strict=True))}
        assert _concrete(found, where) == expected[tuple(position)].item(), position


@pytest.mark.parametrize("name", STOPPED)
def test_stops(name: str) -> None:
    _, found, _, _ = _read(STOPPED[name], dynamic=True)
    assert found is None


def test_a_long_chain_stops() -> None:
    def mask(s: int, t: int) -> Tensor:
        x = torch.arange(t)
        for _ in range(400):
            x = x + 1
        return x > 3

    _, found, _, _ = _read(mask, dynamic=True)
    assert found is None
