"""Spellings by how the softmax is written: casts, dropout that does nothing, sinks, by hand."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import DV, SK, D, H, Spelling, normal, qkv, spelling, take

SOFTMAXES: list[Spelling] = []
_spelling = partial(spelling, SOFTMAXES)
_plain = partial(_spelling, take(*qkv(sk=SK, dv=DV)), equals=F.scaled_dot_product_attention)
_sink = partial(_spelling, take(*qkv(sk=SK), normal(H, std=2.0)))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


def _sink_reference(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    k = torch.cat([k, torch.zeros_like(k[:, :, :1])], dim=2)
    v = torch.cat([v, torch.zeros_like(v[:, :, :1])], dim=2)
    bias = torch.zeros(1, H, q.shape[2], k.shape[2], dtype=q.dtype)
    bias[..., -1] += sinks.view(1, H, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _plus_one_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _sink_reference(q, k, v, torch.zeros(H, dtype=q.dtype))


class SoftmaxModule(nn.Module):
    """nn.Softmax and nn.Dropout modules, the latter in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(dim=-1)
        self.drop = nn.Dropout(0.3)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, S, D) operands."""
        return self.drop(self.softmax(_scores(q, k))) @ v


_plain()(SoftmaxModule)


@_plain()
def softmax_dtype_argument(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """F.softmax(dtype=float32), then back to the queries' dtype."""
    return F.softmax(_scores(q, k), dim=-1, dtype=torch.float32).to(q.dtype) @ v


@_plain()
def softmax_float_method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`.float().softmax().type_as()`."""
    return _scores(q, k).float().softmax(dim=-1).type_as(q) @ v


@_plain()
def softmax_to_dtype_of_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`.to(torch.float32)` and `.to(v)`."""
    return torch.softmax(_scores(q, k).to(torch.float32), -1).to(v) @ v


@_plain()
def upcast_queries_and_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first contraction runs in fp32, the second in the values' dtype."""
    scores = (q.float() @ k.float().mT) * D**-0.5
    return scores.softmax(-1).to(v.dtype) @ v


@_plain()
def upcast_throughout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All of the attention in fp32, the output cast back."""
    p = _scores(q.float(), k.float()).softmax(-1)
    return (p @ v.float()).to(q.dtype)


@_plain()
def upcast_probabilities_and_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Only the softmax and the second contraction run in fp32."""
    p = F.softmax(_scores(q, k), dim=-1, dtype=torch.float32)
    return torch.matmul(p, v.to(torch.float32)).to(v.dtype)


@_plain()
def cast_there_and_back(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Casts by `.float()`, `.to(dtype)` and `.type()` that partly cancel."""
    scores = _scores(q, k).float().to(q.dtype).float()
    return scores.softmax(-1).type(v.dtype).to(v.dtype) @ v


@_plain()
def dropout_evaluation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """F.dropout told that it is not training."""
    return F.dropout(_scores(q, k).softmax(-1), 0.1, False) @ v


@_plain()
def dropout_zero(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Training dropout with probability zero, functional and native."""
    p = F.dropout(_scores(q, k).softmax(-1), p=0.0, training=True)
    return torch.dropout(p, 0.0, True) @ v


@_plain()
def exp_minus_amax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp(x - amax) over its sum."""
    scores = _scores(q, k)
    e = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return (e / e.sum(dim=-1, keepdim=True)) @ v


@_plain()
def exp_minus_max_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The maximum from max(dim).values, the sum inverted and multiplied."""
    scores = _scores(q, k)
    e = (scores - scores.max(dim=-1, keepdim=True).values).exp()
    return (e * e.sum(-1, keepdim=True).reciprocal()) @ v


@_plain()
def exp_minus_detached_max(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The maximum is unpacked and detached, reductions without keepdim."""
    scores = _scores(q, k)
    peak, _ = scores.max(-1)
    e = torch.exp(scores - peak.detach().unsqueeze(-1))
    return torch.div(e, e.sum(-1)[..., None]) @ v


@_plain()
def exp_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Subtraction, exponential and division in place on one buffer."""
    scores = _scores(q, k)
    scores = scores.sub_(scores.detach().amax(-1, keepdim=True)).exp_()
    total = scores.sum(-1, keepdim=True)
    return (scores / total) @ v


@_plain()
def exp_minus_logsumexp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp(x - logsumexp(x))."""
    scores = _scores(q, k)
    return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True)) @ v


@_plain()
def exp_of_log_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """log_softmax undone by exp."""
    return F.log_softmax(_scores(q, k), dim=-1).exp() @ v


@_plain()
def maximum_before_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A maximum is taken away that the softmax would take away anyway."""
    scores = _scores(q, k)
    return (scores - scores.amax(-1, keepdim=True).detach()).softmax(-1) @ v


@_sink(equals=_sink_reference)
def sink_with_maximum(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """A column of sinks is joined, the maximum taken away, the column dropped again."""
    column = sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
    joined = torch.cat([_scores(q, k), column], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    p = F.softmax(joined, dim=-1, dtype=joined.dtype)
    return torch.matmul(F.dropout(p[..., :-1], p=0.0, training=False), v)


@_sink(equals=_sink_reference)
def sink_single_precision(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """A sink without its maximum, softmax in fp32, sliced by the number of keys."""
    scores = _scores(q, k)
    column = sinks.view(H, 1, 1).expand(*scores.shape[:-1], 1)
    p = torch.cat((scores, column), -1).softmax(-1, dtype=torch.float32)
    return p[:, :, :, : k.shape[-2]].to(v.dtype) @ v


@_sink(equals=_sink_reference)
def sink_first(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink comes before the keys and is sliced off the front."""
    scores = _scores(q, k)
    column = sinks[:, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([column, scores], dim=-1).softmax(-1)[..., 1:] @ v


@_sink(equals=_sink_reference)
def sink_narrowed(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """The sink is split off with narrow after a manual softmax."""
    scores = _scores(q, k)
    joined = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], 3)
    e = (joined - joined.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)).narrow(-1, 0, scores.shape[-1]) @ v


@_sink(equals=_sink_reference)
def sink_in_the_denominator(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """exp(sink) joins the sum, under a common maximum."""
    scores, column = _scores(q, k), sinks.view(1, H, 1, 1)
    peak = torch.maximum(scores.amax(-1, keepdim=True), column)
    e = torch.exp(scores - peak)
    return (e / (e.sum(-1, keepdim=True) + torch.exp(column - peak))) @ v


@_sink()
def sink_causal(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """Sinks with a triangle aligned at the end of longer keys."""
    scores = _scores(q, k)
    shift = k.shape[2] - q.shape[2] + 1
    mask = torch.full(scores.shape[-2:], torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device)
    scores = scores + mask.triu(shift)
    joined = torch.cat([scores, sinks.view(1, H, 1, 1).expand(*scores.shape[:3], 1)], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    return joined.softmax(-1)[..., :-1] @ v


@_plain(equals=_plus_one_reference)
def softmax_plus_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """exp(x) / (1 + sum exp(x)), shifted by a maximum that is at least zero."""
    scores = _scores(q, k)
    peak = scores.amax(dim=-1, keepdim=True).clamp(min=0)
    e = torch.exp(scores - peak)
    return (e / (torch.exp(-peak) + e.sum(dim=-1, keepdim=True))) @ v


@_plain(equals=_plus_one_reference)
def softmax_plus_one_any_peak(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with the plain maximum and the one kept in step with it."""
    scores = _scores(q, k)
    peak = scores.max(dim=-1, keepdim=True).values.detach()
    e = (scores - peak).exp()
    return (e / (e.sum(-1, keepdim=True) + (-peak).exp())) @ v


@_plain(equals=_plus_one_reference)
def softmax_plus_one_zero_column(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A column of zeros is joined and dropped."""
    scores = _scores(q, k)
    zeros = torch.zeros(*scores.shape[:-1], 1, dtype=scores.dtype, device=scores.device)
    return torch.cat([zeros, scores], dim=-1).softmax(-1)[..., 1:] @ v


@_plain(equals=_plus_one_reference)
def softmax_plus_one_padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The zero column is made by padding."""
    return F.softmax(F.pad(_scores(q, k), (0, 1)), dim=-1)[..., :-1] @ v


@_plain()
def stable_exponentials_taken_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Both sides of the fraction are written out, with a maximum each."""
    scores = _scores(q, k)
    top = (scores - scores.amax(-1, keepdim=True)).exp()
    return top / (scores - scores.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True) @ v


@_plain(equals=_plus_one_reference)
def plus_one_by_exponentials_taken_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With one more logit of zero, shifted like the others."""
    scores = _scores(q, k)
    most = scores.amax(-1, keepdim=True)
    below = (-most).exp() + torch.exp(scores - most).sum(-1, keepdim=True)
    return torch.exp(scores - most) / below @ v
