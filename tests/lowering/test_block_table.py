"""Tiles that data leaves empty are not visited: the table of them, and numbers with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.lowering.attention.generated import problem
from fuser.lowering.attention.generated.block_table import lists
from fuser.lowering.attention.visible import visible
from tests.every import EVERY
from tests.lowering.generated import Operands, check, operands, spec

ROWS, KEYS = 140, 150
"""Nine tiles each way, the last of them not whole."""


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Of every table: tiles that are seen in part, at all, and that there are."""
    found: list[tuple[int, int, int]] = []

    def noted(kinds: Tensor) -> Any:
        order, counts = lists(kinds)
        partial, seen = counts.sum(tuple(range(counts.ndim - 1))).tolist()
        found.append((partial, seen, kinds.numel()))
        return order, counts

    monkeypatch.setattr(problem, "lists", noted)
    return found


def documents(batch: int, size: int, lengths: tuple[int, ...]) -> Tensor:
    """Numbers of the documents that positions belong to."""
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[:size]
    return numbers.expand(batch, size).contiguous()


def packed(heads: bool = False) -> Operands:
    """Operands and, for queries and for keys, the documents they belong to."""
    x = operands(heads=2, kv=1, rows=ROWS, keys=KEYS, features=8)
    numbers = documents(2, KEYS, (40, 70, 40))
    if heads:
        by_head = torch.stack([numbers, numbers // 2], 1)
        x.captured += [by_head[:, :, :ROWS, None], by_head[:, :, None, :]]
    else:
        x.captured += [numbers[:, None, :ROWS, None], numbers[:, None, None, :]]
    return x


def in_document(iq: Tensor, ik: Tensor, c0: Tensor, c1: Tensor) -> Tensor:
    return (c0 == c1) & (ik <= iq)


@pytest.mark.parametrize("heads", [True, False] if EVERY else [True])
def test_documents(heads: bool, visits: list[tuple[int, int, int]]) -> None:
    """Tables for the forward, the rows kernel and the keys kernel, all from one mask."""
    check(spec(mask=in_document), packed(heads))
    assert len(visits) == 3
    for partial, seen, tiles in visits:
        assert 0 < partial < seen < 0.6 * tiles


def blocks(batch: int, heads: int, *, alive: bool) -> Tensor:
    """A mask of blocks of 40; without `alive` some queries see nothing."""
    generator = torch.Generator().manual_seed(7)
    kept = torch.rand((batch, heads, 4, 4), generator=generator) < 0.35
    if alive:
        kept = kept | torch.eye(4, dtype=torch.bool)
    else:
        kept[:, :, 1] = False
    return kept.repeat_interleave(40, 2).repeat_interleave(40, 3)[:, :, :ROWS, :KEYS]


def filled(s0: Tensor, c0: Tensor) -> Tensor:
    return (s0 * 0.3).masked_fill(~c0, -math.inf)


def chosen(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.where(c0, s0 * 0.3, -math.inf)


@pytest.mark.parametrize(
    ("score", "shape", "alive"),
    [(filled, (1, 1), True), (chosen, (1, 2), False), (chosen, (2, 1), True)][: 3 if EVERY else 1],
)
def test_masks_in_the_score(
    score: Callable[..., Tensor],
    alive: bool,
    shape: tuple[int, int],
    visits: list[tuple[int, int, int]],
) -> None:
    """A query without a key gives NaN to every key's gradient, so that its tiles are visited."""
    x = operands(heads=2, kv=1, rows=ROWS, keys=KEYS, features=8)
    x.captured.append(blocks(*shape, alive=alive))
    ours = check(spec(score), x)
    assert bool(ours.grads[2].isnan().any()) != alive  # type: ignore[union-attr]
    forward, rows, keys = visits
    assert forward[1] < forward[2]
    assert rows[1:] == keys[1:]
    assert (rows[1] > forward[1]) != alive


def test_dead_rows_that_are_zero(visits: list[tuple[int, int, int]]) -> None:
    x = operands(heads=2, kv=1, rows=ROWS, keys=KEYS, features=8)
    x.captured.append(blocks(2, 1, alive=False))
    ours = check(spec(chosen, dead_rows_are_zero=True), x)
    assert (ours.outputs[0] == 0).all(-1).any()
    assert len({seen for _, seen, _ in visits}) == 1


def test_padding(visits: list[tuple[int, int, int]]) -> None:
    x = operands(heads=2, kv=1, rows=ROWS, keys=KEYS, features=8)
    x.captured.append((torch.arange(KEYS) < torch.tensor([[60], [150]]))[:, None, None, :])
    check(spec(mask=lambda ik, iq, c0: c0 & (ik <= iq)), x)
    assert all(seen < 0.6 * tiles for _, seen, tiles in visits)


def test_few_tiles_need_no_table(visits: list[tuple[int, int, int]]) -> None:
    x = operands(rows=40, keys=40)
    x.captured.append(blocks(2, 1, alive=True)[:, :, :40, :40])
    check(spec(chosen), x)
    assert visits == []


def test_biases_are_not_read_twice(visits: list[tuple[int, int, int]]) -> None:
    check(
        spec(lambda s0, c0: s0 + c0),
        operands((1, 1, ROWS, KEYS), batch=1, heads=1, kv=1, rows=ROWS, keys=KEYS),
    )
    assert visits == []


def test_lists() -> None:
    kinds = torch.tensor([[0, 1], [2, 1], [1, 0], [2, 0]], dtype=torch.int8).T
    order, counts = lists(kinds)
    assert order.is_contiguous()
    assert order.tolist() == [[2, 1, 3, 0], [0, 1, 2, 3]]
    assert counts.tolist() == [[1, 3], [2, 2]]


@pytest.mark.parametrize(
    ("score", "condition"),
    [
        (lambda s0, c0: torch.where(c0, s0, -math.inf), "c0"),
        (lambda s0, c0: torch.where(c0, -math.inf, s0), "logical_not(c0)"),
        (
            lambda s0, c0: s0.masked_fill(c0, -math.inf).to(dtype=torch.float32) * 2,
            "logical_not(c0)",
        ),
        (lambda s0, c0: s0 / 3 + c0, "(c0 != -inf)"),
        (
            lambda s0, c0, c1: (s0 + c0) + c1,
            "((c1 != -inf) & ((c0 != -inf) | logical_not((c1 < inf))))",
        ),
    ],
)
def test_what_is_hidden(score: Callable[..., Tensor], condition: str) -> None:
    found = visible(spec(score).score, None)
    assert found is not None
    assert (str(found.condition), found.in_score, found.in_mask) == (condition, True, False)


@pytest.mark.parametrize(
    "score",
    [
        lambda s0: s0 * 2,
        lambda s0, c0: torch.where(c0, s0, -1e9),
        lambda s0, c0: torch.where(c0, s0, math.inf),
        lambda s0, c0: torch.tanh(torch.where(c0, s0, -math.inf)),
        lambda s0, c0: torch.where(c0, s0, -math.inf) * -1,
        lambda s0, c0: torch.where(c0, s0, -math.inf) * 0,
        lambda s0, c0: torch.where(s0 > 0, s0, c0),
        lambda s0, c0: torch.where(c0, s0, -math.inf) * s0,
        lambda s0, c0: torch.where(c0, s0, -math.inf) + math.inf,
    ],
)  # fmt: skip
def test_what_is_not_hidden(score: Callable[..., Tensor]) -> None:
    assert visible(spec(score).score, None) is None
