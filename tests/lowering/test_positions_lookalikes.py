"""What must not become a function of positions, or not of others: numbers and NaN as in eager."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuser.graph.program import Program
from tests.compiled import assert_near, run, wide
from tests.lowering.absorbing import (
    Absorbed,
    B,
    H,
    S,
    absorbed,
    check,
    positions_of,
    qkv,
    scores_of,
)

LOWEST = torch.finfo(torch.float32).min

# -- values that change


def test_a_mask_that_is_written_to_afterwards() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        i, j = positions_of(q)
        keep = j <= i
        out = scores_of(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v
        keep.fill_(True)
        return out, keep

    assert "iq" in check(fn, qkv()).mask


def test_a_bias_that_is_written_to_afterwards() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        i, j = positions_of(q)
        bias = (j - i).float()
        out = (scores_of(q, k) + bias).softmax(-1) @ v
        bias.zero_()
        return out, bias

    found = check(fn, qkv())
    assert found.same
    assert found.shapes == [(S, S)]


def test_documents_that_are_written_to_before_the_scores_are_masked() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
        keep = documents[:, None, :, None] == documents[:, None, None, :]
        documents[:, ::2] += 1
        return scores_of(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    documents = torch.arange(S).expand(B, S).clone() // 4
    found = check(fn, [*qkv(), documents])
    assert found.shapes == [(B, 1, S, S)]


def test_steps_in_place_are_followed_where_nobody_sees_them() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        i, j = positions_of(q)
        bias = slopes[:, None, None] * (j - i)
        bias += (j > i) * -2.0
        bias *= 0.5
        return (scores_of(q, k) + bias).softmax(-1) @ v

    found = check(fn, [*qkv(), torch.rand(H)])
    assert found.shapes == [(H, 1, 1)]


def test_random_masks() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        keep = (torch.rand(S, S) < 0.5) | (i == j)
        return scores_of(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    found = check(fn, qkv())
    assert "iq" in found.mask
    assert found.shapes == [(S, S)]


# -- gradients


class Slopes(nn.Module):
    """A trained slope for each head, or one that no gradient reaches."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.slopes = nn.Parameter(torch.linspace(0.1, 0.4, H))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        slopes = self.slopes.detach() if self.how == "detach" else self.slopes
        with torch.set_grad_enabled(self.how != "no_grad" and torch.is_grad_enabled()):
            bias = slopes.view(H, 1, 1) * (j - i)
        return (scores_of(q, k) + bias).softmax(-1) @ v


@pytest.mark.parametrize("how", ["trained", "no_grad", "detach"])
def test_gradients_of_what_a_bias_is_made_from(how: str) -> None:
    found = check(Slopes(how), qkv(grad=True), grad=True)
    assert found.shapes == ([(H, S, S)] if how == "no_grad" else [(H, 1, 1)])
    assert check(Slopes(how), qkv()).shapes == [(H, 1, 1)]


def test_a_condition_gives_no_gradient() -> None:
    """What is compared gets none, not zero."""

    def fn(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        i, j = positions_of(q)
        keep = (x[:, None, :, None] > x[:, None, None, :]) | (j <= i)
        return scores_of(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    found = check(fn, [*qkv(grad=True), torch.randn(B, S).requires_grad_()], grad=True)
    assert found.mask == "(c0 | (iq >= ik))"
    assert found.shapes == [(B, 1, S, S)]


class Table(nn.Module):
    """A bias looked up by distance."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(2 * S - 1, H)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        table = self.embedding.weight
        if self.how == "embedding":
            bias = self.embedding(j - i + S - 1).permute(2, 0, 1)
        elif self.how == "index_select":
            bias = table.index_select(0, (j - i + S - 1).flatten()).view(S, S, H).permute(2, 0, 1)
        elif self.how == "negative":
            bias = table[j - i].permute(2, 0, 1)
        else:
            bias = table.t()[:, j - i + S - 1]
        return (scores_of(q, k) + bias).softmax(-1) @ v


@pytest.mark.parametrize("how", ["embedding", "index_select", "negative", "columns"])
def test_tables_are_looked_up_unless_they_train(how: str) -> None:
    assert "gather" in check(Table(how), qkv()).score
    assert "gather" not in check(Table(how), qkv(grad=True), grad=True).score


def test_an_index_for_each_score_is_no_gain() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, table: Tensor, index: Tensor) -> Tensor:
        return (scores_of(q, k) + F.embedding(index, table).permute(2, 0, 1)).softmax(-1) @ v

    index = torch.arange(S * S).view(S, S) % 7
    assert check(fn, [*qkv(), torch.randn(7, H), index]).same


def test_a_table_by_documents() -> None:
    """Indices that vary along queries alone, and along keys alone."""

    def fn(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kinds: Tensor) -> Tensor:
        bias = table[kinds[:, :, None], kinds[:, None, :]]
        return (scores_of(q, k) + bias[:, None]).softmax(-1) @ v

    kinds = torch.arange(B * S).view(B, S) % 3
    found = check(fn, [*qkv(), torch.randn(3, 3), kinds])
    assert sorted(found.shapes) == [(2, 1, S), (2, S, 1), (3, 3)]


# -- dtypes


def test_rounding_of_a_bias_in_half_precision() -> None:
    """Positions above 256 are no bf16 numbers, and eager adds what they are rounded to."""

    def fn(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        i, j = positions_of(q)
        bias = slopes.view(H, 1, 1) * ((j - i) * 37).to(q.dtype)
        return (scores_of(q, k) + bias).softmax(-1) @ v

    slopes = torch.linspace(0.3, 0.9, H).to(torch.bfloat16)
    found = check(fn, [*qkv(torch.bfloat16), slopes])
    assert found.shapes == [(H, 1, 1)]
    i, j = positions_of(torch.empty(S, 1))
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
        i, j = positions_of(q)
        bias = torch.exp(-(j - i).abs().to(q.dtype))
        return (scores_of(q, k) + bias).softmax(-1) @ v

    assert check(fn, qkv(torch.bfloat16)).same
    assert check(fn, qkv()).shapes == []


def test_short_integers_wrap_around() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i = torch.arange(S, dtype=torch.int32)[:, None]
        j = torch.arange(S, dtype=torch.int32)
        keep = (j <= i) | ((j - i) * 1_000_000_000 < 0)
        return scores_of(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    assert check(fn, qkv()).shapes == []


def test_a_mask_that_promotes_the_scores() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        scores = scores_of(q, k) + torch.where(j <= i, 0.0, -torch.inf)
        return (scores * 0.7).softmax(-1).to(v.dtype) @ v

    found = check(fn, qkv(torch.bfloat16))
    assert found.mask == "(iq >= ik)"
    assert "float32" in found.score


def test_autocast() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            i, j = positions_of(q)
            scores = scores_of(q, k) + slopes.view(H, 1, 1) * (j - i)
            return scores.masked_fill(j > i, -torch.inf).softmax(-1) @ v

    args = [*qkv(), torch.rand(H)]
    ours, (found,) = absorbed(fn, args)
    assert_near(ours, run(fn, args), run(lambda *a: fn(*a).double(), wide(args)))
    assert found.mask == "(iq >= ik)"


# -- axes


def test_masks_by_head_and_by_batch() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        heads = torch.arange(q.shape[1])[:, None, None]
        batch = torch.arange(q.shape[0])[:, None, None, None]
        keep = (i - j < heads + 2) & (j <= i + batch)
        return scores_of(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    found = check(fn, qkv())
    assert found.shapes == []
    assert {"ib", "ih"} <= set(found.spec.mask.inputs)  # type: ignore[union-attr]


def test_axes_of_equal_size_are_told_apart() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        bias = x[None, :, :, None] * 2 + x.T[None, :, None, :]
        return (q @ k.mT + bias).softmax(-1) @ v

    x = torch.randn(4, 4)
    q, k, v = (torch.randn(4, 4, 4, 6) for _ in range(3))
    found = check(fn, [q, k, v, x])
    assert sorted(found.shapes) == [(1, 4, 1, 4), (1, 4, 4, 1)]


def test_sizes_that_are_inputs() -> None:
    """The last rows of more keys: both sizes are known to a kernel."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, keys = q.shape[-2], k.shape[-2]
        keep = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
        return scores_of(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v

    q, k, v = qkv()
    q = q[:, :, :7].contiguous()
    for x, size in ((q, 2), (k, 2), (v, 2)):
        torch._dynamo.mark_dynamic(x, size)
    ours, (found,) = absorbed(fn, [q, k, v])
    assert_near(ours, run(fn, [q, k, v]), run(fn, wide([q, k, v])))
    assert found.mask == "((iq + nk) >= (ik + nq))"


def test_a_size_that_no_score_has() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        i, j = positions_of(q)
        return scores_of(q, k).masked_fill(j > i + x.shape[0], -torch.inf).softmax(-1) @ v

    x = torch.empty(2)
    torch._dynamo.mark_dynamic(x, 0)
    ours, (found,) = absorbed(fn, [*qkv(), x])
    assert_near(ours, run(fn, [*qkv(), x]), run(fn, wide([*qkv(), x])))
    assert found.mask == "((iq + to(c0, int64)) >= ik)"


def test_a_bias_made_from_the_attention_before() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        x = (scores_of(q, k).softmax(-1) @ v).mean(-1)
        bias = x[..., None] - x[..., None, :] + (j - i)
        return (scores_of(q, k) + bias).softmax(-1) @ v

    ours, found = absorbed(fn, qkv())
    assert_near(ours, run(fn, qkv()), run(fn, wide(qkv())))
    assert found[1].shapes == [(B, H, S, 1), (B, H, 1, S)]


class Hiding(nn.Module):
    """Parameters that are no weights: a table that hides pairs, a sink that is switched off."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.zeros(2 * S, H)
        table[S - 1 :] = LOWEST  # of the own position and all before: nothing that causal keeps
        self.table = nn.Parameter(table, requires_grad=False)
        self.sinks = nn.Parameter(torch.full((H,), -torch.inf), requires_grad=False)


class HidingTable(Hiding):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        bias = self.table[i - j + S - 1].permute(2, 0, 1)
        return (scores_of(q, k) + bias).masked_fill(j > i, LOWEST).softmax(-1) @ v


class SilentSink(Hiding):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
        i, j = positions_of(q)
        scores = scores_of(q, k).masked_fill(~(kept[:, None, None] & (j <= i)), LOWEST)
        column = self.sinks.view(1, H, 1, 1).expand(B, H, S, 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v


def test_a_table_of_parameters_may_hide_every_key() -> None:
    """Then the number of the causal mask is as large as all others, and later keys count."""
    assert check(HidingTable(), qkv()).mask == ""


def test_a_sink_of_parameters_may_be_no_key() -> None:
    kept = torch.ones(B, S, dtype=torch.bool)
    kept[:, :3] = False
    assert check(SilentSink(), [*qkv(), kept]).mask == ""


@pytest.mark.parametrize("how", ["where", "constant", "filled"])
def test_infinity_over_a_mask_is_no_number(how: str) -> None:
    """-inf + inf: the mask may not move behind a bias that takes it away again."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i, j = positions_of(q)
        bias = {
            "where": lambda: torch.where(j > i, torch.inf, 0.0),
            "constant": lambda: torch.tensor([0.0] * (S - 1) + [torch.inf]).expand(S, S),
            "filled": lambda: torch.where(j > i, 1.0, 0.0).masked_fill(j == S - 1, torch.inf),
        }[how]()
        return (scores_of(q, k).masked_fill(j > i, -torch.inf) + bias).softmax(-1) @ v

    assert check(fn, qkv()).mask == ""


def test_another_bias_does_not_keep_a_mask() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        i, j = positions_of(q)
        return (scores_of(q, k).masked_fill(j > i, -torch.inf) + bias).softmax(-1) @ v

    assert check(fn, [*qkv(), torch.randn(H, S, S)]).mask == "(iq >= ik)"
