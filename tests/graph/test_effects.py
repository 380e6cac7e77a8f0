"""Which tensors a node writes to, and whether it draws random numbers: by schema and by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils.checkpoint import checkpoint

from fuser.graph.effects import draws, is_foreign
from fuser.graph.ops import read
from tests.compiled import assert_near, compiled, run, wide

from .capture import captured

X = torch.randn(4, 6)
Write = Callable[[Tensor], Any]


@torch.library.custom_op("fuser_tests::scale_all", mutates_args={"xs"})
def scale_all(xs: list[Tensor], by: float) -> None:
    for x in xs:
        x.mul_(by)


@torch.library.custom_op("fuser_tests::pure", mutates_args=())
def pure(x: Tensor) -> Tensor:
    return x * 2


@pure.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch._dynamo.allow_in_graph
def _foreign(x: Tensor) -> Tensor:
    x.mul_(2)
    return x.sum()


def _checkpointed(x: Tensor) -> Tensor:
    return checkpoint(lambda t: t.mul_(2), x, use_reentrant=False)


def _some(like: Tensor, *shape: int) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape).to(like.dtype).cos()


WRITES: dict[str, Write] = {
    "method": lambda x: x.mul_(2),
    "operator": lambda x: x.__imul__(2),
    "element": lambda x: x.__setitem__(0, 1.0),
    "out": lambda x: torch.add(x, 1, out=x),
    "list": lambda x: torch._foreach_mul_([x], 2.0),
    "operator on a list": lambda x: scale_all([x], 2.0),
    "embedding": lambda x: F.embedding(torch.arange(4), x, max_norm=0.1),
    "running mean": lambda x: F.batch_norm(_some(x, 3, 6), x[0], x[1].abs(), training=True),
    "instance norm": lambda x: F.instance_norm(_some(x, 3, 6, 5), x[0], x[1].abs()),
    "inplace": lambda x: F.threshold(x, 0.0, 1.0, True),
    "inplace by name": lambda x: F.leaky_relu(x, inplace=True),
    "foreign function": _foreign,
    "checkpoint": _checkpointed,
}
READS: dict[str, Write] = {
    "and": lambda x: (x > 0) & (x < 1),
    "list": lambda x: torch._foreach_mul([x], 2.0)[0],
    "operator": lambda x: pure(x),
    "embedding": lambda x: F.embedding(torch.arange(4), x),
    "running mean": lambda x: F.batch_norm(_some(x, 3, 6), x[0], x[1].abs()),
    "batch norm of x": lambda x: F.batch_norm(x, None, None, training=True),
    "relu": lambda x: F.relu(x),
    "checkpoint": lambda x: checkpoint(lambda t: t * 2, x, use_reentrant=False),
    "own copy in a checkpoint": lambda x: checkpoint(
        lambda t: t.clone().mul_(2), x, use_reentrant=False
    ),
}


def _writes(fn: Write) -> bool:
    """Whether the memory of `z` is among what is written to."""

    def program(x: Tensor) -> Any:
        z = x.sin()
        r = fn(z)
        return z, r

    view = captured(program, (X,))
    (z,) = (n for n in view.nodes if view.op(n).name == "sin")
    return view.mutated_between(z, 0, len(view.nodes)) is not None


@pytest.mark.parametrize("name", WRITES)
def test_writes(name: str) -> None:
    assert _writes(WRITES[name])


@pytest.mark.parametrize("name", READS)
def test_reads(name: str) -> None:
    assert not _writes(READS[name])


@pytest.mark.parametrize("name", WRITES)
def test_a_write_between_the_products_declines_attention(name: str) -> None:
    def model(q: Tensor, k: Tensor) -> tuple[Tensor, Any]:
        k = k.clone()
        score = q @ k.mT
        found = WRITES[name](k)
        return score.softmax(-1) @ k, found

    torch.manual_seed(2)
    q, k = torch.randn(3, 6), torch.randn(4, 6).abs() + 0.5
    ours = compiled(model, (q, k))
    assert ours.rewrites() == 0
    assert "mutated" in ours.reasons()
    assert_near(ours, run(model, (q, k)), run(model, wide((q, k))))


def _one(target: Any, *args: Any) -> Node:
    graph = Graph()
    node = graph.call_function(target, args)
    GraphModule({}, graph)
    return node


def test_random() -> None:
    for target, random in (
        (torch.ops.aten.bernoulli.default, True),
        (torch.ops.aten.add.Tensor, False),
        (torch.rand, True),
        (torch.arange, False),
        (_foreign, True),
    ):
        node = _one(target)
        assert draws(node, read(node)) is random, target
    view = captured(lambda x: checkpoint(F.dropout, x, use_reentrant=False), (X,))
    assert view.random_positions
    view = captured(lambda x: checkpoint(torch.sin, x, use_reentrant=False), (X,))
    assert not view.random_positions


def test_foreign() -> None:
    assert is_foreign(_one(test_foreign))
    for target in (torch.add, F.relu, max, torch.Tensor.add_, torch.ops.aten.add.Tensor):
        assert not is_foreign(_one(target)), target
