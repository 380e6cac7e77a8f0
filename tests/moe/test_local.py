"""Experts whose rows were sorted elsewhere: left, and said why; nothing is said of others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fuser

from .forms import Sorted, grouped

ROWS, FEATURES, EXPERTS = 12, 8, 3
REASON = "rows come sorted by expert, and which token chose which expert"


def gated(rows: Tensor, ends: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = grouped(rows, gate_up, offs=ends).chunk(2, -1)
    return grouped(F.silu(gate) * up, down, offs=ends)


def plain(rows: Tensor, ends: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    hidden = grouped(rows, gate_up, offs=ends).relu()[:, :FEATURES].contiguous()
    return grouped(F.dropout(hidden, 0.1, training=False), down, offs=ends)


def counted_before(rows: Tensor, counts: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return gated(rows, counts.diff(prepend=counts[:1] * 0).cumsum(0).int(), gate_up, down)


def one_product(rows: Tensor, ends: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return grouped(rows, gate_up, offs=ends).relu()


def other_ends(rows: Tensor, ends: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Runs are others: these are not experts one after the other."""
    hidden = grouped(rows, gate_up, offs=ends)[:, :FEATURES].contiguous()
    return grouped(hidden.relu(), down, offs=ends.clone())


def mixed(rows: Tensor, ends: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Features of all rows meet between the products."""
    hidden = grouped(rows, gate_up, offs=ends)[:, :FEATURES].contiguous()
    return grouped(hidden.softmax(0), down, offs=ends)


def sorted_here(rows: Tensor, ends: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The choice is seen: other reasons are for the pattern of whole mixtures to tell."""
    ids, order = (rows[:, 0] > 0).long().sort()
    counts = torch.histc(ids.float(), EXPERTS, 0, EXPERTS - 1)
    return gated(rows[order], counts.cumsum(0, dtype=torch.int32), gate_up, down)


def told(fn: Callable[..., Tensor], *args: Tensor, **options: object) -> list[str]:
    report = fuser.explain(fn, *args, options=options)
    return [miss.reason for miss in (*report.declined, *report.left)]


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (gated, True),
        (plain, True),
        (counted_before, True),
        (one_product, False),
        (other_ends, False),
        (mixed, False),
        (sorted_here, False),
    ],
)
def test_local_experts_are_told_of(fn: Callable[..., Tensor], says: bool) -> None:
    torch.manual_seed(0)
    rows, ends = torch.randn(ROWS, FEATURES), torch.tensor([4, 4, 12], dtype=torch.int32)
    gate_up, down = torch.randn(EXPERTS, FEATURES, 2 * FEATURES), torch.randn(EXPERTS, 8, FEATURES)
    reasons = told(fn, rows, ends, gate_up, down)
    assert any(REASON in reason for reason in reasons) == says
    assert len(reasons) == says


@pytest.mark.parametrize("policy", ["auto", "always"])
def test_nothing_is_said_of_a_part_of_a_mixture(policy: str) -> None:
    module, x = Sorted().eval(), torch.randn(10, 16)
    reasons = told(module, x, **{"fuser.policy": policy})
    assert not any(REASON in reason for reason in reasons)
    mixture_and_router = 2 if policy == "auto" else 0
    assert len(reasons) == mixture_and_router
