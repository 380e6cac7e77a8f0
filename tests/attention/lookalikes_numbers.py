"""Look-alikes that differ in their numbers only: rows without a key, unusual dtypes.

A row whose keys are all hidden is NaN under -inf, uniform under a lowest finite number, and zero
under scaled_dot_product_attention; an infinity may also be made by a cast or a sum.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import SK, B, D, H, LookAlike, S, fixed, integers, lookalike, normal, qkv, take

NUMBERS: list[LookAlike] = []
_lookalike = partial(lookalike, NUMBERS)


def _left_padded() -> Tensor:
    keep = torch.ones(B, S, dtype=torch.bool)
    keep[1, :3] = False
    return keep[:, None, None, :] & torch.ones(S, S, dtype=torch.bool).tril()


_rows = partial(_lookalike, take(*qkv(), fixed(_left_padded)), reason="")
_built = partial(_lookalike, take(*qkv()), reason="")
_double = partial(
    _lookalike,
    take(*(normal(B, H, n, D, dtype=torch.float64) for n in (S, SK, SK))),
    reason="float64",
)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


def _zeros(keep: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(keep.shape, dtype=like.dtype, device=like.device)


@_rows()
def hidden_rows_lowest_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Left padding in a decoder: the sum with the lowest number is uniform."""
    bias = _zeros(keep, q).masked_fill(~keep, torch.finfo(q.dtype).min)
    return (_scores(q, k) + bias).softmax(-1) @ v


@_rows()
def hidden_rows_lowest_filled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """masked_fill with the lowest number: exactly uniform."""
    return _scores(q, k).masked_fill(~keep, torch.finfo(q.dtype).min).softmax(-1) @ v


@_rows()
def hidden_rows_infinity_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A float mask of -inf: NaN."""
    bias = _zeros(keep, q).masked_fill(~keep, -torch.inf)
    return (_scores(q, k) + bias).softmax(-1) @ v


@_rows()
def hidden_rows_infinity_filled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """masked_fill with -inf: NaN."""
    return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v


@_rows()
def hidden_rows_infinity_upcast(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A bool mask turned into -inf, softmax of the upcast scores: NaN."""
    bias = torch.where(keep, 0.0, -torch.inf).to(q.dtype)
    return torch.softmax((_scores(q, k) + bias).float(), dim=-1).to(q.dtype) @ v


@_rows()
def hidden_rows_where(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """torch.where with -inf: NaN."""
    return torch.where(keep, _scores(q, k), -torch.inf).softmax(-1) @ v


@_rows()
def hidden_rows_by_hand(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """-inf minus its maximum: NaN."""
    scores = _scores(q, k).masked_fill(~keep, -torch.inf)
    e = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


@_rows(trains=False)
def hidden_rows_replaced(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """NaN becomes zero after the softmax."""
    p = _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1)
    return torch.nan_to_num(p) @ v


@_rows()
def hidden_rows_zeroed(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """The lowest number first, hidden probabilities to zero afterwards."""
    p = _scores(q, k).masked_fill(~keep, torch.finfo(q.dtype).min).softmax(-1)
    return p.masked_fill(~keep, 0.0) @ v


@_rows(reason="used elsewhere", trains=False)
def hidden_rows_safe(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A softmax that gives zeros for a row of -inf, decomposed."""
    scores = _scores(q, k).masked_fill(~keep, -torch.inf)
    empty = torch.all(scores == -torch.inf, dim=-1, keepdim=True)
    return torch.where(empty, 0.0, scores.softmax(-1)) @ v


@_rows()
def hidden_rows_moderate(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A moderate number added to all keys of a row changes nothing but the rounding."""
    scores = (_scores(q, k)).float() + (1 - keep.float()) * -1024.0
    return scores.softmax(-1).to(q.dtype) @ v


@_rows()
def hidden_rows_multiplied(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Scores are zeroed and lowered, so that an empty row is uniform."""
    weight = keep.to(q.dtype)
    return (_scores(q, k) * weight + -1e4 * (1 - weight)).softmax(-1) @ v


@_rows()
def hidden_rows_lowest_twice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Two lowest numbers sum to -inf: NaN where one would be uniform."""
    bias = _zeros(keep, q).masked_fill(~keep, torch.finfo(q.dtype).min)
    return (_scores(q, k) + bias + bias).softmax(-1) @ v


@_rows()
def hidden_rows_lowest_overflows(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """fp32's lowest number becomes -inf in bf16 and fp16, and stays finite in fp32."""
    bias = torch.where(keep, 0.0, torch.finfo(torch.float32).min).to(q.dtype)
    return (_scores(q, k) + bias).softmax(-1) @ v


@_rows()
def hidden_rows_lowest_scaled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A scale after the mask turns the lowest number into -inf."""
    bias = _zeros(keep, q).masked_fill(~keep, torch.finfo(q.dtype).min)
    return ((q @ k.mT + bias) * 1.5).softmax(-1) @ v


@_rows()
def hidden_rows_capped(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A soft cap after the mask makes hidden keys visible again."""
    bias = _zeros(keep, q).masked_fill(~keep, torch.finfo(q.dtype).min)
    return (torch.tanh((_scores(q, k) + bias) / 3) * 3).softmax(-1) @ v


@_rows(trains=False)
def hidden_rows_library(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """The library call with a bool mask gives zeros."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep)


@_rows(trains=False)
def hidden_rows_library_lowest(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """The library call with a float mask of lowest numbers."""
    bias = _zeros(keep, q).masked_fill(~keep, torch.finfo(q.dtype).min)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _padding() -> Tensor:
    keep = torch.ones(B, 1, 1, S, dtype=torch.bool)
    keep[1, ..., :3] = False
    return keep


_padded = partial(_lookalike, take(*qkv(), fixed(_padding)), reason="")


def _later(q: Tensor) -> Tensor:
    return torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)


@_padded()
def padded_rows_infinity_filled_twice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """A causal mask known while compiling, then left padding: NaN, and gradients cut at both."""
    scores = _scores(q, k).masked_fill(_later(q), -torch.inf)
    return scores.masked_fill(~keep, -torch.inf).softmax(-1) @ v


@_padded()
def padded_rows_lowest_filled_twice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """The same with the lowest number: empty rows are uniform over all keys, later ones too."""
    scores = _scores(q, k).masked_fill(_later(q), torch.finfo(q.dtype).min)
    return scores.masked_fill(~keep, torch.finfo(q.dtype).min).softmax(-1) @ v


@_padded()
def padded_rows_infinity_added_twice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Two float masks of -inf are added."""
    causal = torch.full((S, S), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    padding = _zeros(keep, q).masked_fill(~keep, -torch.inf)
    return (_scores(q, k) + causal + padding).softmax(-1) @ v


@_padded()
def padded_rows_lowest_added_twice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Two float masks of lowest numbers: uniform over the keys that only one of them hides."""
    causal = torch.full((S, S), torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu(1)
    padding = _zeros(keep, q).masked_fill(~keep, torch.finfo(q.dtype).min)
    return (_scores(q, k) + causal + padding).softmax(-1) @ v


@_padded()
def padded_rows_added_then_filled(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """Padding is added, the causal mask filled in."""
    padding = _zeros(keep, q).masked_fill(~keep, -torch.inf)
    return (_scores(q, k) + padding).masked_fill(_later(q), -torch.inf).softmax(-1) @ v


@_built()
def strict_triangle_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask known while compiling whose first row is empty: NaN."""
    keep = torch.ones(S, S, dtype=torch.bool, device=q.device).tril(-1)
    return _scores(q, k).masked_fill(~keep, -torch.inf).softmax(-1) @ v


@_built()
def strict_triangle_lowest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with a lowest number: the first row is uniform."""
    keep = torch.ones(S, S, dtype=torch.bool, device=q.device).tril(-1)
    return _scores(q, k).masked_fill(~keep, torch.finfo(q.dtype).min).softmax(-1) @ v


@_built()
def all_hidden_lowest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every key is hidden by a lowest number: a plain mean of the values."""
    hidden = torch.ones(S, S, dtype=torch.bool, device=q.device)
    return _scores(q, k).masked_fill(hidden, torch.finfo(q.dtype).min).softmax(-1) @ v


@_built()
def all_hidden_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every key is hidden by -inf: NaN throughout."""
    bias = torch.full((S, S), -torch.inf, dtype=q.dtype, device=q.device)
    return (_scores(q, k) + bias).softmax(-1) @ v


@_built()
def more_queries_than_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A triangle aligned at the end leaves the first queries of a long row without a key."""
    k, v = k[:, :, :13], v[:, :, :13]
    keep = torch.ones(S, 13, dtype=torch.bool, device=q.device).tril(13 - S)
    return _scores(q, k).masked_fill(~keep, torch.finfo(q.dtype).min).softmax(-1) @ v


@_built()
def positive_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bias of +inf on the diagonal: NaN."""
    bias = torch.zeros(S, S, dtype=q.dtype, device=q.device).fill_diagonal_(torch.inf)
    return (_scores(q, k) + bias).softmax(-1) @ v


@_built()
def zero_times_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A triangle made by multiplying zeros with -inf holds NaN."""
    upper = torch.ones(S, S, dtype=q.dtype, device=q.device).triu(1)
    return (_scores(q, k) + upper * -torch.inf).softmax(-1) @ v


@_double()
def double_precision(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """float64 operands."""
    return _scores(q, k).softmax(-1) @ v


@_double()
def double_precision_library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """float64 operands in a library call whose mask hides nothing."""
    mask = torch.ones(S, SK, dtype=torch.bool, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@_lookalike(take(*qkv(sk=SK)), "float64")
def double_precision_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Only the softmax runs in float64."""
    return _scores(q, k).softmax(-1, dtype=torch.float64).to(q.dtype) @ v


@_lookalike(take(*qkv(sk=SK)), "float64")
def double_precision_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are upcast to float64 for a bias in float64."""
    bias = torch.linspace(-1, 1, SK, dtype=torch.float64, device=q.device)
    return (_scores(q, k) + bias).softmax(-1).to(v.dtype) @ v


@_lookalike(take(*qkv(sk=SK)), "")
def half_precision_inside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores are rounded to fp16 before an fp32 softmax."""
    return _scores(q, k).half().float().softmax(-1).to(v.dtype) @ v


@_lookalike(
    take(*(normal(B, H, n, D, dtype=torch.complex64) for n in (S, SK)), normal(B, H, SK, D)),
    "complex",
)
def complex_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Magnitudes of complex products."""
    return (q @ k.mH).abs().softmax(-1).to(v.dtype) @ v


@_lookalike(take(*(integers(B, H, n, D, high=3) for n in (S, SK, SK))), "integer", trains=False)
def integer_operands(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Integer products, cast for the softmax."""
    return (q @ k.mT).float().softmax(-1) @ v.float()


@_lookalike(take(*(integers(B, H, n, D, high=2) for n in (S, SK)), normal(B, H, SK, D)), "integer")
def integer_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Integer scores meet a float scale."""
    return ((q @ k.mT) / D**0.5).to(v.dtype).softmax(-1) @ v


@_lookalike(take(*qkv(sk=0)), "", trains=False)
def no_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An empty key axis gives zeros."""
    return _scores(q, k).softmax(-1) @ v


@_lookalike(take(*qkv(sk=1)), "")
def one_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A single key takes all."""
    return _scores(q, k).softmax(-1) @ v


@_lookalike(take(*qkv(sq=1, sk=1, heads=1, batch=1)), "")
def all_sizes_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every axis but the depth has size one."""
    return _scores(q, k).softmax(-1) @ v
