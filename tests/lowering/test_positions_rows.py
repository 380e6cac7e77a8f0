"""Queries whose keys are all masked: uniform, NaN, or with a key after all, as in eager."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.lowering.absorbing import B, Fn, S, check, positions_of, qkv, scores_of

LOWEST = torch.finfo(torch.float32).min


def _left_padded() -> Tensor:
    keep = torch.ones(B, S, dtype=torch.bool)
    keep[1, :3] = False
    return keep


def _masked(fill: float) -> Fn:
    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = positions_of(q)
        keep = kept[:, None, None] & (j <= i)
        return scores_of(q, k).masked_fill(~keep, fill).softmax(-1) @ v

    return fn


def _added(fill: float) -> Fn:
    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = positions_of(q)
        keep = kept[:, None, None] & (j <= i)
        return (scores_of(q, k) + torch.where(keep, 0.0, fill)).softmax(-1) @ v

    return fn


@pytest.mark.parametrize("make", [_masked, _added])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_rows_that_are_uniform_stay_so(make: Callable[[float], Fn], grad: bool) -> None:
    found = check(make(LOWEST), [*qkv(grad=grad), _left_padded()], grad=grad)
    assert found.mask == ""
    assert found.shapes == [(B, S)]


@pytest.mark.parametrize("make", [_masked, _added])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_rows_that_are_nan_stay_so(make: Callable[[float], Fn], grad: bool) -> None:
    """So are gradients, of v for all keys: in training -inf stays where it is."""
    found = check(make(-torch.inf), [*qkv(grad=grad), _left_padded()], grad=grad)
    assert (found.mask == "") is grad


@pytest.mark.parametrize("fill", [LOWEST, -torch.inf])
def test_a_query_is_in_its_own_document(fill: float) -> None:
    """The same numbers are compared, so that a query keeps the key at its own position."""

    def fn(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
        i, j = positions_of(q)
        keep = (documents[:, :, None] == documents[:, None, :])[:, None] & (j <= i)
        return scores_of(q, k).masked_fill(~keep, fill).softmax(-1) @ v

    documents = torch.arange(S).expand(B, S) // 5
    found = check(fn, [*qkv(grad=True), documents], grad=True)
    assert found.mask == "((c0 == c1) & (iq >= ik))"


@pytest.mark.parametrize("how", ["other tensor", "other function", "floats", "earlier keys"])
def test_a_query_may_be_in_no_document(how: str) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, documents: Tensor, others: Tensor) -> Tensor:
        i, j = positions_of(q)
        rows, keys = documents[:, :, None], documents[:, None, :]
        if how == "other tensor":
            keys = others[:, None, :]
        elif how == "other function":
            keys = keys + 1
        elif how == "floats":
            rows, keys = (torch.where(x > 1, torch.nan, 0.0) for x in (rows, keys))
        hidden = ~(rows == keys)[:, None] | (j >= i if how == "earlier keys" else j > i)
        return scores_of(q, k).masked_fill(hidden, LOWEST).softmax(-1) @ v

    documents = torch.arange(S).expand(B, S).contiguous() // 5
    assert check(fn, [*qkv(), documents, documents.flip(1)]).mask == ""


@pytest.mark.parametrize("fill", [LOWEST, -torch.inf])
def test_first_query_without_a_key(fill: float) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        return scores_of(q, k).masked_fill(j >= i, fill).softmax(-1) @ v

    assert (check(fn, qkv()).mask != "") is (fill == -torch.inf)


def test_last_queries_without_a_key() -> None:
    """A window at the end of fewer keys."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, keys = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
        hidden = (keys > rows) | (keys <= rows - 3)
        return scores_of(q, k).masked_fill(hidden, LOWEST).softmax(-1) @ v

    q, k, v = qkv()
    found = check(fn, [q, k[:, :, :5].contiguous(), v[:, :, :5].contiguous()])
    assert found.mask == ""


def test_a_finite_number_over_an_infinite_one() -> None:
    """In rows without a key the later fill decides which keys share the weight."""

    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = positions_of(q)
        scores = scores_of(q, k).masked_fill(j > i, -torch.inf)
        return scores.masked_fill(~kept[:, None, None], LOWEST).softmax(-1) @ v

    assert check(fn, [*qkv(), _left_padded()]).mask == ""


def test_an_infinite_number_over_a_finite_one() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = positions_of(q)
        scores = scores_of(q, k).masked_fill(~kept[:, None, None], LOWEST)
        return scores.masked_fill(j > i, -torch.inf).softmax(-1) @ v

    found = check(fn, [*qkv(), _left_padded()])
    assert found.mask == "(iq >= ik)"
    assert "masked_fill" in found.score


def test_another_mask_may_be_in_the_bias() -> None:
    """An additive input may leave a query nothing: then the lowest number counts."""

    def fn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        i, j = positions_of(q)
        return (scores_of(q, k) + bias).masked_fill(j > i, LOWEST).softmax(-1) @ v

    bias = torch.zeros(B, 1, S, S).masked_fill(~_left_padded()[:, None, None], LOWEST)
    found = check(fn, [*qkv(), bias])
    assert found.mask == ""


def test_a_scale_of_unknown_sign_after_a_mask() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        i, j = positions_of(q)
        scores = scores_of(q, k) + torch.where(j <= i, 0.0, -1e32)
        return (scores * scale).softmax(-1) @ v

    assert check(fn, [*qkv(), torch.tensor(-1e-30)]).mask == ""


def test_a_mask_before_a_softcap_is_none() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        return torch.tanh(scores_of(q, k).masked_fill(j > i, LOWEST)).softmax(-1) @ v

    found = check(fn, qkv())
    assert found.mask == ""
    assert found.shapes == []


def test_a_mask_that_is_taken_away() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        return (scores_of(q, k) - (j > i).float() * 1e32).softmax(-1) @ v

    assert check(fn, qkv()).mask == "(iq >= ik)"


def test_a_moderate_number_is_no_mask() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        return (scores_of(q, k) + torch.where(j <= i, 0.0, -20.0)).softmax(-1) @ v

    assert check(fn, qkv()).mask == ""


def test_a_logit_of_zero_is_a_key_for_every_query() -> None:
    """It takes the weight of a query that has no key."""

    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = positions_of(q)
        scores = scores_of(q, k).masked_fill(~(kept[:, None, None] & (j <= i)), LOWEST)
        return F.pad(scores, (0, 1)).softmax(-1)[..., :-1] @ v

    assert "iq" in check(fn, [*qkv(), _left_padded()]).mask
