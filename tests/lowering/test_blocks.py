"""Block tables and bands: what they leave out is masked, and what they compute is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fuser.lowering.attention import banded, blocks
from fuser.lowering.attention.mask import MaskFacts, MaskKind
from tests.compiled import Run, assert_near, compiled, run, wide
from tests.lowering.test_mask import positions, structured

KINDS = blocks.STRUCTURED
WIDTHS = {MaskKind.CAUSAL: 0, MaskKind.WINDOW: 37, MaskKind.CHUNKED: 90, MaskKind.PREFIX: 75}


def _facts(kind: MaskKind, width: int | None = None) -> MaskFacts:
    return MaskFacts(kind, True, WIDTHS[kind] if width is None else width)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_no_kept_position_is_left_out(kind: MaskKind, rows: int, keys: int, width: int) -> None:
    keys = keys if kind is MaskKind.CAUSAL else rows
    facts = _facts(kind, 0 if kind is MaskKind.CAUSAL else min(width, keys))
    seen = torch.zeros(rows, keys, dtype=torch.bool)
    for block, found in enumerate(blocks._ranges(facts, rows, keys)):
        top = block * blocks.SIZE
        seen[top : top + blocks.SIZE, found.start * blocks.SIZE : found.stop * blocks.SIZE] = True
        assert found.stop <= -(-keys // blocks.SIZE)
    kept = structured(kind, facts.width, rows, keys)
    assert not bool((kept & ~seen).any())
    assert 0 < blocks.visited(facts, rows, keys) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_element(kind: MaskKind) -> None:
    facts = _facts(kind, 0 if kind is MaskKind.CAUSAL else 5)
    i, j = positions(23, 23)
    keep = blocks.keeps(facts)(torch.zeros(()), torch.zeros(()), i, j)
    assert torch.equal(keep.expand(23, 23), structured(kind, facts.width, 23, 23))


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, kind: MaskKind, cap: float, low: float, width: int
) -> Tensor:
    score = q @ k.mT * q.shape[-1] ** -0.5
    if cap:
        score = torch.tanh(score / cap) * cap
    keep = structured(kind, width, q.shape[2], k.shape[2])
    return torch.softmax(score + torch.where(keep, 0.0, low), -1) @ v


def _qkv(rows: int, *, grad: bool = False, dtype: Any = torch.float32) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return tuple(torch.randn(2, 3, rows, 16, dtype=dtype).requires_grad_(grad) for _ in range(3))


def _lowering(found: Run) -> str:
    (rewrite,) = found.record.rewritten
    return rewrite.lowering


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_after_a_softcap_becomes_a_table(kind: MaskKind, low: float) -> None:
    fn = partial(attention, kind=kind, cap=2.0, low=low, width=WIDTHS[kind])
    ours = compiled(fn, _qkv(200))
    assert _lowering(ours).startswith(f"flex_attention, {_facts(kind)}")
    assert not any("contiguous" in line for line in ours.record.rewritten[0].added)
    assert_near(ours, run(fn, _qkv(200)), run(fn, wide(_qkv(200))))


def test_through_code_generation() -> None:
    """All kinds in one graph: a table that left out too much would show."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat(
            [
                attention(q, k, v, kind=kind, cap=2.0, low=-torch.inf, width=WIDTHS[kind])
                for kind in KINDS
            ]
        )

    q, k, v = _qkv(200)
    ours = compiled(fn, (q, k, v), inner="inductor")
    assert [r.lowering.split(",")[0] for r in ours.record.rewritten] == ["flex_attention"] * 4
    assert_near(ours, run(fn, (q, k, v)), run(fn, wide((q, k, v))))


def _after(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = positions(q.shape[2], k.shape[2])
    score = (q @ k.mT).masked_fill(j > i, -torch.inf)
    return torch.softmax(torch.tanh(score) * 2.0, -1) @ v


def _biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = positions(q.shape[2], k.shape[2])
    bias = torch.where(i % 2 == 0, -1e6, 0.0)
    score = torch.tanh(q @ k.mT) * 2.0 + bias * (j < 3)
    return torch.softmax(score.masked_fill(j > i, torch.finfo(q.dtype).min), -1) @ v


@pytest.mark.parametrize("fn", [_after, _biased], ids=["mask before the cap", "huge bias"])
def test_masks_that_stay_in_the_program(fn: Callable[..., Tensor]) -> None:
    ours = compiled(fn, _qkv(80))
    assert "causal" not in _lowering(ours)
    assert_near(ours, run(fn, _qkv(80)), run(fn, wide(_qkv(80))))


@pytest.mark.parametrize("rows", [96, 100, 127, 129])
@pytest.mark.parametrize(("kind", "width"), [(MaskKind.WINDOW, 32), (MaskKind.CHUNKED, 32)])
@pytest.mark.parametrize("grad", [False, True])
def test_bands_with_a_part_of_a_block_at_the_end(
    kind: MaskKind, width: int, rows: int, grad: bool
) -> None:
    fn = partial(attention, kind=kind, cap=0.0, low=-torch.inf, width=width)
    inputs = _qkv(rows, grad=grad)
    ours = compiled(fn, inputs, grad=grad)
    if grad:
        assert _lowering(ours) == f"aten.sdpa, {_facts(kind, width)}"
    assert_near(ours, run(fn, inputs, grad=grad), run(fn, wide(inputs), grad=grad))


def test_bands_that_are_more_work_than_everything() -> None:
    assert banded.fits(_facts(MaskKind.WINDOW, 32), 64, 64)
    assert not banded.fits(_facts(MaskKind.WINDOW, 32), 65, 65)
    assert not banded.fits(_facts(MaskKind.WINDOW, 32), 32, 32)
    assert banded.fits(_facts(MaskKind.WINDOW, 32), 96, 96)
    assert not banded.fits(_facts(MaskKind.CAUSAL, 0), 96, 96)


def test_the_least_work_is_taken_and_the_others_named() -> None:
    """A known bias under a prefix: the flash kernel would read all scores, a table skips some."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions(q.shape[2], k.shape[2])
        score = q @ k.mT - 0.01 * (i - j).abs()
        return torch.softmax(score.masked_fill((j > i) & (j >= 70), -torch.inf), -1) @ v

    ours = compiled(fn, _qkv(400))
    (rewrite,) = ours.record.rewritten
    assert rewrite.lowering == "flex_attention, prefix 70"
    assert "times the work" in rewrite.why.partition("not guarded.flash, bias: ")[2]
    assert_near(ours, run(fn, _qkv(400)), run(fn, wide(_qkv(400))))
