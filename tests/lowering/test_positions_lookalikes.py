"""What must not become a function of positions, or not of others: numbers and NaN as in eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuser.graph.program import Program
from tests.compiled import assert_near, run, wide
from tests.lowering.absorbing import Absorbed, absorbed

B, H, S, D = 2, 3, 12, 8
LOWEST = torch.finfo(torch.float32).min
Fn = Callable[..., Any]


def _qkv(dtype: torch.dtype = torch.float32, *, grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(B, H, S, D, generator=generator).to(dtype) for _ in range(3)]
    return [x.requires_grad_(grad) for x in made]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.mT * D**-0.5


def _ij(like: Tensor) -> tuple[Tensor, Tensor]:
    positions = torch.arange(like.shape[-2], device=like.device)
    return positions[:, None], positions[None]


def _copies(args: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_(x.requires_grad) for x in args]


def _check(
    fn: Fn, args: list[Tensor], *, grad: bool = False, dynamic: bool | None = None
) -> Absorbed:
    """Numbers as eager's; each run has inputs of its own, since some are written to."""
    ours, found = absorbed(fn, _copies(args), grad=grad, dynamic=dynamic)
    eager = run(fn, _copies(args), grad=grad)
    exact = run(fn, wide(_copies(args)), grad=grad)
    assert_near(ours, eager, exact)
    assert len(found) == 1
    return found[0]


# -- values that change


def test_a_mask_that_is_written_to_afterwards() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        i, j = _ij(q)
        keep = j <= i
        out = _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v
        keep.fill_(True)
        return out, keep

    assert "iq" in _check(fn, _qkv()).mask


def test_a_bias_that_is_written_to_afterwards() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        i, j = _ij(q)
        bias = (j - i).float()
        out = (_scores(q, k) + bias).softmax(-1) @ v
        bias.zero_()
        return out, bias

    found = _check(fn, _qkv())
    assert found.same
    assert found.shapes == [(S, S)]


def test_documents_that_are_written_to_before_the_scores_are_masked() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
        keep = documents[:, None, :, None] == documents[:, None, None, :]
        documents[:, ::2] += 1
        return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    documents = torch.arange(S).expand(B, S).clone() // 4
    found = _check(fn, [*_qkv(), documents])
    assert found.shapes == [(B, 1, S, S)]


def test_steps_in_place_are_followed_where_nobody_sees_them() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        i, j = _ij(q)
        bias = slopes[:, None, None] * (j - i)
        bias += (j > i) * -2.0
        bias *= 0.5
        return (_scores(q, k) + bias).softmax(-1) @ v

    found = _check(fn, [*_qkv(), torch.rand(H)])
    assert found.shapes == [(H, 1, 1)]


def test_random_masks() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        keep = (torch.rand(S, S) < 0.5) | (i == j)
        return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    found = _check(fn, _qkv())
    assert "iq" in found.mask
    assert found.shapes == [(S, S)]


# -- rows without a key


def _left_padded() -> Tensor:
    keep = torch.ones(B, S, dtype=torch.bool)
    keep[1, :3] = False
    return keep


def _masked(fill: float) -> Fn:
    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = _ij(q)
        keep = kept[:, None, None] & (j <= i)
        return _scores(q, k).masked_fill(~keep, fill).softmax(-1) @ v

    return fn


def _added(fill: float) -> Fn:
    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = _ij(q)
        keep = kept[:, None, None] & (j <= i)
        return (_scores(q, k) + torch.where(keep, 0.0, fill)).softmax(-1) @ v

    return fn


@pytest.mark.parametrize("make", [_masked, _added])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_rows_that_are_uniform_stay_so(make: Callable[[float], Fn], grad: bool) -> None:
    found = _check(make(LOWEST), [*_qkv(grad=grad), _left_padded()], grad=grad)
    assert found.mask == ""
    assert found.shapes == [(B, S)]


@pytest.mark.parametrize("make", [_masked, _added])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_rows_that_are_nan_stay_so(make: Callable[[float], Fn], grad: bool) -> None:
    """Where -inf is added, so are the gradients: a mask would make them zero."""
    found = _check(make(-torch.inf), [*_qkv(grad=grad), _left_padded()], grad=grad)
    assert (found.mask == "") is (grad and make is _added)


@pytest.mark.parametrize("fill", [LOWEST, -torch.inf])
def test_first_query_without_a_key(fill: float) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        return _scores(q, k).masked_fill(j >= i, fill).softmax(-1) @ v

    assert (_check(fn, _qkv()).mask != "") is (fill == -torch.inf)


def test_last_queries_without_a_key() -> None:
    """A window at the end of fewer keys."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, keys = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])
        hidden = (keys > rows) | (keys <= rows - 3)
        return _scores(q, k).masked_fill(hidden, LOWEST).softmax(-1) @ v

    q, k, v = _qkv()
    found = _check(fn, [q, k[:, :, :5].contiguous(), v[:, :, :5].contiguous()])
    assert found.mask == ""


def test_a_finite_number_over_an_infinite_one() -> None:
    """In rows without a key the later fill decides which keys share the weight."""

    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = _ij(q)
        scores = _scores(q, k).masked_fill(j > i, -torch.inf)
        return scores.masked_fill(~kept[:, None, None], LOWEST).softmax(-1) @ v

    assert _check(fn, [*_qkv(), _left_padded()]).mask == ""


def test_an_infinite_number_over_a_finite_one() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = _ij(q)
        scores = _scores(q, k).masked_fill(~kept[:, None, None], LOWEST)
        return scores.masked_fill(j > i, -torch.inf).softmax(-1) @ v

    found = _check(fn, [*_qkv(), _left_padded()])
    assert found.mask == "(iq >= ik)"
    assert "masked_fill" in found.score


def test_another_mask_may_be_in_the_bias() -> None:
    """An additive input may leave a query nothing: then the lowest number counts."""

    def fn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        i, j = _ij(q)
        return (_scores(q, k) + bias).masked_fill(j > i, LOWEST).softmax(-1) @ v

    bias = torch.zeros(B, 1, S, S).masked_fill(~_left_padded()[:, None, None], LOWEST)
    found = _check(fn, [*_qkv(), bias])
    assert found.mask == ""


def test_a_scale_of_unknown_sign_after_a_mask() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        i, j = _ij(q)
        scores = _scores(q, k) + torch.where(j <= i, 0.0, -1e32)
        return (scores * scale).softmax(-1) @ v

    assert _check(fn, [*_qkv(), torch.tensor(-1e-30)]).mask == ""


def test_a_mask_before_a_softcap_is_none() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        return torch.tanh(_scores(q, k).masked_fill(j > i, LOWEST)).softmax(-1) @ v

    found = _check(fn, _qkv())
    assert found.mask == ""
    assert found.shapes == []


def test_a_moderate_number_is_no_mask() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        return (_scores(q, k) + torch.where(j <= i, 0.0, -20.0)).softmax(-1) @ v

    assert _check(fn, _qkv()).mask == ""


class Sinks(nn.Module):
    """A trained logit beside the keys takes the weight of a query that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(H))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = _ij(q)
        scores = _scores(q, k).masked_fill(~(kept[:, None, None] & (j <= i)), LOWEST)
        column = self.sinks.view(1, H, 1, 1).expand(B, H, S, 1)
        return torch.cat([scores, column.to(scores.dtype)], -1).softmax(-1)[..., :-1] @ v


def test_a_sink_is_a_key_for_every_query() -> None:
    found = _check(Sinks(), [*_qkv(), _left_padded()])
    assert "iq" in found.mask


# -- gradients


class Slopes(nn.Module):
    """A trained slope for each head, or one that no gradient reaches."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.slopes = nn.Parameter(torch.linspace(0.1, 0.4, H))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        slopes = self.slopes.detach() if self.how == "detach" else self.slopes
        with torch.set_grad_enabled(self.how != "no_grad" and torch.is_grad_enabled()):
            bias = slopes.view(H, 1, 1) * (j - i)
        return (_scores(q, k) + bias).softmax(-1) @ v


@pytest.mark.parametrize("how", ["trained", "no_grad", "detach"])
def test_gradients_of_what_a_bias_is_made_from(how: str) -> None:
    found = _check(Slopes(how), _qkv(grad=True), grad=True)
    assert found.shapes == ([(H, S, S)] if how == "no_grad" else [(H, 1, 1)])
    assert _check(Slopes(how), _qkv()).shapes == [(H, 1, 1)]


def test_a_condition_gives_no_gradient() -> None:
    """What is compared gets none, not zero."""

    def fn(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        i, j = _ij(q)
        keep = (x[:, None, :, None] > x[:, None, None, :]) | (j <= i)
        return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    found = _check(fn, [*_qkv(grad=True), torch.randn(B, S).requires_grad_()], grad=True)
    assert found.mask == "(c0 | (iq >= ik))"
    assert found.shapes == [(B, 1, S, S)]


class Table(nn.Module):
    """A bias looked up by distance."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(2 * S - 1, H)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        table = self.embedding.weight
        if self.how == "embedding":
            bias = self.embedding(j - i + S - 1).permute(2, 0, 1)
        elif self.how == "index_select":
            bias = table.index_select(0, (j - i + S - 1).flatten()).view(S, S, H).permute(2, 0, 1)
        elif self.how == "negative":
            bias = table[j - i].permute(2, 0, 1)
        else:
            bias = table.t()[:, j - i + S - 1]
        return (_scores(q, k) + bias).softmax(-1) @ v


@pytest.mark.parametrize("how", ["embedding", "index_select", "negative", "columns"])
def test_tables_are_looked_up_unless_they_train(how: str) -> None:
    assert "gather" in _check(Table(how), _qkv()).score
    assert "gather" not in _check(Table(how), _qkv(grad=True), grad=True).score


def test_an_index_for_each_score_is_no_gain() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, table: Tensor, index: Tensor) -> Tensor:
        return (_scores(q, k) + F.embedding(index, table).permute(2, 0, 1)).softmax(-1) @ v

    index = torch.arange(S * S).view(S, S) % 7
    assert _check(fn, [*_qkv(), torch.randn(7, H), index]).same


def test_a_table_by_documents() -> None:
    """Indices that vary along queries alone, and along keys alone."""

    def fn(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kinds: Tensor) -> Tensor:
        bias = table[kinds[:, :, None], kinds[:, None, :]]
        return (_scores(q, k) + bias[:, None]).softmax(-1) @ v

    kinds = torch.arange(B * S).view(B, S) % 3
    found = _check(fn, [*_qkv(), torch.randn(3, 3), kinds])
    assert sorted(found.shapes) == [(2, 1, S), (2, S, 1), (3, 3)]


# -- dtypes


def test_rounding_of_a_bias_in_half_precision() -> None:
    """Positions above 256 are no bf16 numbers, and eager adds what they are rounded to."""

    def fn(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        i, j = _ij(q)
        bias = slopes.view(H, 1, 1) * ((j - i) * 37).to(q.dtype)
        return (_scores(q, k) + bias).softmax(-1) @ v

    slopes = torch.linspace(0.3, 0.9, H).to(torch.bfloat16)
    found = _check(fn, [*_qkv(torch.bfloat16), slopes])
    assert found.shapes == [(H, 1, 1)]
    i, j = _ij(torch.empty(S, 1))
    eager = slopes.view(H, 1, 1) * ((j - i) * 37).to(torch.bfloat16)
    zero = torch.zeros(1, 1, S, S)
    for program, dtype in ((found.spec.score, torch.bfloat16), (_widened(found), torch.float32)):
        positions = {"iq": i[None, None], "ik": j[None, None]}
        added = program(s0=zero.to(dtype), c0=slopes.view(1, H, 1, 1).to(dtype), **positions)
        assert torch.equal(added[0].to(torch.bfloat16), eager)


def _widened(found: Absorbed) -> Program:
    return found.spec.score.widened()


def test_functions_in_half_precision_are_left_to_eager() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        bias = torch.exp(-(j - i).abs().to(q.dtype))
        return (_scores(q, k) + bias).softmax(-1) @ v

    assert _check(fn, _qkv(torch.bfloat16)).same
    assert _check(fn, _qkv()).shapes == []


def test_short_integers_wrap_around() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i = torch.arange(S, dtype=torch.int32)[:, None]
        j = torch.arange(S, dtype=torch.int32)
        keep = (j <= i) | ((j - i) * 1_000_000_000 < 0)
        return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    assert _check(fn, _qkv()).shapes == []


def test_a_mask_that_promotes_the_scores() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        scores = _scores(q, k) + torch.where(j <= i, 0.0, -torch.inf)
        return (scores * 0.7).softmax(-1).to(v.dtype) @ v

    found = _check(fn, _qkv(torch.bfloat16))
    assert found.mask == "(iq >= ik)"
    assert "float32" in found.score


def test_autocast() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            i, j = _ij(q)
            scores = _scores(q, k) + slopes.view(H, 1, 1) * (j - i)
            return scores.masked_fill(j > i, -torch.inf).softmax(-1) @ v

    args = [*_qkv(), torch.rand(H)]
    ours, (found,) = absorbed(fn, args)
    assert_near(ours, run(fn, args), run(lambda *a: fn(*a).double(), wide(args)))
    assert found.mask == "(iq >= ik)"


# -- axes


def test_masks_by_head_and_by_batch() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        heads = torch.arange(q.shape[1])[:, None, None]
        batch = torch.arange(q.shape[0])[:, None, None, None]
        keep = (i - j < heads + 2) & (j <= i + batch)
        return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    found = _check(fn, _qkv())
    assert found.shapes == []
    assert {"ib", "ih"} <= set(found.spec.mask.inputs)  # type: ignore[union-attr]


def test_axes_of_equal_size_are_told_apart() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        bias = x[None, :, :, None] * 2 + x.T[None, :, None, :]
        return (q @ k.mT + bias).softmax(-1) @ v

    x = torch.randn(4, 4)
    q, k, v = (torch.randn(4, 4, 4, 6) for _ in range(3))
    found = _check(fn, [q, k, v, x])
    assert sorted(found.shapes) == [(1, 4, 1, 4), (1, 4, 4, 1)]


def test_sizes_that_are_inputs() -> None:
    """The last rows of more keys: both sizes are known to a kernel."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, keys = q.shape[-2], k.shape[-2]
        keep = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
        return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    q, k, v = _qkv()
    q = q[:, :, :7].contiguous()
    for x, size in ((q, 2), (k, 2), (v, 2)):
        torch._dynamo.mark_dynamic(x, size)
    ours, (found,) = absorbed(fn, [q, k, v])
    assert_near(ours, run(fn, [q, k, v]), run(fn, wide([q, k, v])))
    assert found.mask == "((iq + nk) >= (ik + nq))"


def test_a_size_that_no_score_has() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        i, j = _ij(q)
        return _scores(q, k).masked_fill(j > i + x.shape[0], -torch.inf).softmax(-1) @ v

    x = torch.empty(2)
    torch._dynamo.mark_dynamic(x, 0)
    ours, (found,) = absorbed(fn, [*_qkv(), x])
    assert_near(ours, run(fn, [*_qkv(), x]), run(fn, wide([*_qkv(), x])))
    assert found.mask == "((iq + to(c0, int64)) >= ik)"


def test_a_bias_made_from_the_attention_before() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = _ij(q)
        x = (_scores(q, k).softmax(-1) @ v).mean(-1)
        bias = x[..., None] - x[..., None, :] + (j - i)
        return (_scores(q, k) + bias).softmax(-1) @ v

    ours, found = absorbed(fn, _qkv())
    assert_near(ours, run(fn, _qkv()), run(fn, wide(_qkv())))
    assert found[1].shapes == [(B, H, S, 1), (B, H, 1, S)]
