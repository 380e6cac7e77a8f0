"""What elements depend on: through the distance alone, or through a position too."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.dependence import DependenceReader
from fuser.graph.fold import Folder
from fuser.graph.ops import value
from tests.graph.capture import captured, last

S, BUCKETS, HEADS = 12, 5, 3
TABLE = torch.randn(BUCKETS, HEADS)
FLAT = torch.randn(2 * S - 1)
SQUARE = torch.randn(S, S)
Bias = Callable[[Tensor, Tensor, Tensor], Tensor]


def _distance() -> Tensor:
    at = torch.arange(S)
    return at[None, :] - at[:, None]


def _bucket(distance: Tensor) -> Tensor:
    far = (torch.log(distance.abs().float() + 1) * 2).to(torch.long)
    return torch.min(far, torch.full_like(far, BUCKETS - 1))


# (i, j) -> element, as functions of (table, flat, square)
BY_DISTANCE: dict[str, Bias] = {
    "distance": lambda t, f, s: _distance(),
    "float": lambda t, f, s: _distance().to(torch.float32).abs() * -0.5,
    "clamped": lambda t, f, s: _distance().clamp(-3, 3) * 0.5,
    "T5 of transformers": lambda t, f, s: F.embedding(_t5_bucket(), t)[..., 0],
    "embedding": lambda t, f, s: F.embedding(_bucket(_distance()), t)[..., 0],
    "gather": lambda t, f, s: t[_bucket(_distance())][:, :, 1],
    "row of a table": lambda t, f, s: t.T[2][_bucket(_distance())],
    "relative table": lambda t, f, s: f[_distance() + S - 1],
    "mask": lambda t, f, s: torch.where(_distance() > 0, -torch.inf, f[0]),
    "two of them": lambda t, f, s: f[_distance() + S - 1] + t[_bucket(_distance())][..., 0].exp(),
    "transposed": lambda t, f, s: f[_distance() + S - 1].T,
    "unfold by hand": lambda t, f, s: f[torch.arange(S)[:, None] - torch.arange(S) + S - 1],
}
BY_POSITION: dict[str, Bias] = {
    "square": lambda t, f, s: s,
    "square plus distance": lambda t, f, s: s + _distance(),
    "sum of positions": lambda t, f, s: f[torch.arange(S)[:, None] + torch.arange(S)],
    "key": lambda t, f, s: _distance() + f[:S],
    "query": lambda t, f, s: _distance() * f[:S, None],
    "product": lambda t, f, s: _distance() * torch.arange(S),
    "chunks": lambda t, f, s: torch.arange(S)[:, None] // 4 - torch.arange(S) // 4,
    "flipped": lambda t, f, s: (_distance() * 0.5).flip(0),
    "rolled": lambda t, f, s: _distance().float().roll(1, 0),
    "softmax": lambda t, f, s: _distance().float().softmax(-1),
    "running sum": lambda t, f, s: _distance().float().cumsum(-1),
    "dropout": lambda t, f, s: F.dropout(_distance().float(), 0.5, True),
    "noise": lambda t, f, s: _distance() + torch.randn(S, S),
    "written over": lambda t, f, s: (_distance() * 0.5).index_fill_(0, torch.tensor(3), 0.0),
    "one element written": lambda t, f, s: _one_written(),
    "sorted": lambda t, f, s: _distance().sort(-1).values,
    "wrong diagonal": lambda t, f, s: f[_distance() + torch.arange(S) // 7 + S - 1 - 1],
}


def _t5_bucket() -> Tensor:
    """As transformers writes it: the bucket is summed up in place."""
    relative, buckets = _distance(), 0
    buckets += (relative > 0).to(torch.long) * 2
    relative = torch.abs(relative)
    far = 1 + (torch.log(relative.float()) / math.log(8)).to(torch.long)
    far = torch.min(far, torch.full_like(far, 2))
    buckets += torch.where(relative < 1, relative, far)
    return buckets


def _one_written() -> Tensor:
    found = _distance().float() * 1.0
    found[2, 3] = 7.0
    return found


def _depends_on_distance(fn: Bias) -> bool:
    view = captured(fn, (TABLE, FLAT, SQUARE))
    node, reader = last(view), DependenceReader(Folder(view))
    i, j = sympy.symbols("i j", integer=True, nonnegative=True)
    reader.sizes.update({i: sympy.Integer(S), j: sympy.Integer(S)})
    assert tuple(value(node).shape) == (S, S)
    found = reader.arguments_at(node, (i, j))
    return all(sympy.expand(e.xreplace({i: i + 1, j: j + 1}) - e) == 0 for e in found)


@pytest.mark.parametrize("name", BY_DISTANCE)
def test_distance_alone(name: str) -> None:
    found = BY_DISTANCE[name](TABLE, FLAT, SQUARE)
    assert torch.equal(found[1:, 1:], found[:-1, :-1]), "the case itself is wrong"
    assert _depends_on_distance(BY_DISTANCE[name])


@pytest.mark.parametrize("name", BY_POSITION)
def test_position_too(name: str) -> None:
    assert not _depends_on_distance(BY_POSITION[name])
