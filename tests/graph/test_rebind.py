"""In-place statements are followed like in-place expressions, and undone where nothing matched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.rebind import rebind, undo
from tests.compiled import assert_near, compiled, run, wide
from tests.graph.capture import captured


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores.mul_(0.25)
    scores.masked_fill_(torch.arange(scores.shape[-1]) > 9, torch.finfo(q.dtype).min)
    return F.softmax(scores.float(), -1).type_as(scores) @ v


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.softmax(q @ k.mT, -1)
    F.dropout(p, 0.0, True, inplace=True)
    return p @ v


def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores += 1.0
    torch.relu_(scores)
    out = scores.softmax(-1)
    out *= 2.0
    return out @ v


def before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Read before the write, and written through a view: no attention."""
    scores = q @ k.mT
    first = scores.softmax(-1)
    scores.mul_(2.0)
    return first @ v + scores.sum()


def through_a_view(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores.view(-1).mul_(0.5)
    return scores.softmax(-1) @ v


def of_an_input(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The caller sees the write."""
    k.mul_(0.5)
    return (q @ k.mT).softmax(-1) @ v


def _qkv() -> tuple[Tensor, ...]:
    torch.manual_seed(4)
    return tuple(torch.randn(2, 3, 12, 8) for _ in range(3))


@pytest.mark.parametrize(
    ("fn", "count"),
    [
        (masked, 1),
        (dropped, 1),
        (mixed, 1),
        (before, None),
        (through_a_view, None),
        (of_an_input, None),
    ],
)
def test_statements(fn: Callable[..., Tensor], count: int | None) -> None:
    inputs = _qkv()
    ours = compiled(fn, [t.clone() for t in inputs])
    eager = run(fn, [t.clone() for t in inputs])
    assert_near(ours, eager, run(fn, wide(inputs)))
    if count is not None:
        assert ours.rewrites() == count


def test_an_input_that_is_written_to_stays_written_to() -> None:
    ours, eager = _qkv(), _qkv()
    torch._dynamo.reset()
    options = {"fuser.inner": "aot_eager", "fuser.policy": "always", "fuser.strict": True}
    torch.compile(of_an_input, backend="fuser", options=options)(*ours)
    of_an_input(*eager)
    torch.testing.assert_close(ours[1], eager[1], rtol=0, atol=0)


@pytest.mark.parametrize("fn", [masked, mixed, before, of_an_input])
def test_undo_leaves_the_graph_as_it_was(fn: Callable[..., Tensor]) -> None:
    view = captured(fn, _qkv())
    text = str(view.graph)
    changed = rebind(view)
    assert changed
    assert str(view.graph) != text
    view.graph.lint()
    undo(changed)
    assert str(view.graph) == text
