"""Tables that kernels read at computed indices: from the end, and never beyond."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import assert_near, compiled, run, wide
from tests.lowering.absorbing import B, D, S, absorbed, positions_of, qkv, scores_of

TRITON = {"fuser.lowering": "triton"}
ROWS = 5
Bias = Callable[[Tensor, Tensor], Tensor]


def by_both(table: Tensor, kinds: Tensor) -> Tensor:
    return torch.stack([table, -table], 1)[kinds[:, :, None], kinds[:, None] % 2][:, None]


def by_sum(table: Tensor, kinds: Tensor) -> Tensor:
    return table[kinds[:, None, :, None] + kinds[:, None, None]]


def by_distance(table: Tensor, kinds: Tensor) -> Tensor:
    at = torch.arange(kinds.shape[1])
    return table[torch.div(at[:, None] - at, 3, rounding_mode="trunc")]


def embedded(table: Tensor, kinds: Tensor) -> Tensor:
    return F.embedding(kinds[:, None, :, None] + kinds[:, None, None], table[:, None])[..., 0]


def selected(table: Tensor, kinds: Tensor) -> Tensor:
    index = kinds[0, :, None] + kinds[0]
    return table.index_select(0, index.flatten()).view(index.shape)


def _attention(bias: Bias) -> Callable[..., Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kinds: Tensor) -> Tensor:
        return (scores_of(q, k) + bias(table, kinds)).softmax(-1) @ v

    return fn


def _island(rows: int = ROWS) -> Tensor:
    """A table in the middle of NaN."""
    sea = torch.full((3 * rows,), torch.nan)
    sea[rows : 2 * rows] = torch.arange(rows) * 0.3
    return sea[rows : 2 * rows]


def _kinds(low: int, high: int) -> Tensor:
    return torch.randint(low, high, (B, S), generator=torch.Generator().manual_seed(1))


def _args(low: int, high: int, dynamic: bool) -> list[Tensor]:
    table = _island()
    if dynamic:
        torch._dynamo.mark_dynamic(table, 0)
    return [*qkv(), table, _kinds(low, high)]


@pytest.mark.parametrize("bias", [by_both, by_sum, by_distance])
@pytest.mark.parametrize("dynamic", [False, True])
def test_negative_indices_count_from_the_end(bias: Bias, dynamic: bool) -> None:
    fn, args = _attention(bias), _args(-(ROWS // 2), ROWS // 2 + 1, dynamic)
    ours = compiled(fn, args, **TRITON)
    assert ours.rewrites() == 1
    assert_near(ours, run(fn, args), run(fn, wide(args)))


@pytest.mark.parametrize("bias", [by_both, by_sum, embedded, selected])
@pytest.mark.parametrize("dynamic", [False, True])
def test_nothing_beyond_a_table_is_read(bias: Bias, dynamic: bool) -> None:
    """Eager raises an error for these; a kernel reads the nearest element. What nobody reads any
    more, which would raise it still, is left to AOTAutograd to drop."""
    fn, args = _attention(bias), _args(-2 * ROWS, 2 * ROWS, dynamic)
    with pytest.raises((IndexError, RuntimeError)):
        fn(*args)
    ours = compiled(fn, args, inner="aot_eager", **TRITON)
    assert ours.rewrites() == 1
    assert ours.outputs[0].isfinite().all()


def test_what_is_known_to_be_inside_is_not_asked_for() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        i, j = positions_of(q)
        return (scores_of(q, k) + F.embedding(j - i + S - 1, table)[None, ..., 0]).softmax(-1) @ v

    _, (found,) = absorbed(fn, [*qkv(), torch.randn(2 * S - 1, 1)])
    assert found.score == f"((s0 * {D**-0.5:.6g}) + gather(c0, ((ik + {S - 1}) - iq), 0))"
    _, (found,) = absorbed(fn, [*qkv(), torch.randn(2 * S, 1)])
    assert "where" not in found.score


def test_an_embedding_that_writes_to_its_table_is_left() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kinds: Tensor) -> Tensor:
        bias = F.embedding(kinds, table, max_norm=0.5)[..., 0]
        return (scores_of(q, k) + bias[:, None, None]).softmax(-1) @ v

    args = [*qkv(), torch.randn(ROWS, 1), _kinds(0, ROWS)]
    _, found = absorbed(fn, args)
    assert all("gather" not in a.score for a in found)
