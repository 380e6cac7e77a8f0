"""Spellings by where and how the scores are scaled, capped or otherwise shaped pointwise."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import DV, SK, B, D, E, H, S, Spelling, fixed, normal, qkv, spelling, take

SCALES: list[Spelling] = []
_spelling = partial(spelling, SCALES)
_plain = partial(_spelling, take(*qkv(sk=SK, dv=DV)), equals=F.scaled_dot_product_attention)
_other = partial(_spelling, take(*qkv(sk=SK, dv=DV)))


@_plain()
def scale_from_the_left(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A Python number on the left of the product."""
    return torch.softmax(D**-0.5 * (q @ k.mT), dim=-1) @ v


@_plain()
def scale_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`*=` on the scores."""
    scores = q @ k.mT
    scores *= D**-0.5
    return scores.softmax(-1) @ v


@_plain()
def scale_div_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tensor.div_ on the scores."""
    return (q @ k.mT).div_(math.sqrt(D)).softmax(-1) @ v


@_other(equals=partial(F.scaled_dot_product_attention, scale=0.25))
def scale_integer_divisor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Division by a Python integer."""
    return ((q @ k.mT) / 4).softmax(-1) @ v


@_other(equals=partial(F.scaled_dot_product_attention, scale=1.0))
def scale_absent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No scale at all."""
    return (q @ k.mT).softmax(-1) @ v


@_other(equals=partial(F.scaled_dot_product_attention, scale=1.0))
def scale_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A multiplication by the integer one."""
    return ((q @ k.mT) * 1).softmax(-1) @ v


@_plain()
def scale_on_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The queries carry the scale."""
    q = q * q.shape[-1] ** -0.5
    return (q @ k.mT).softmax(-1) @ v


@_plain()
def scale_on_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The keys carry the scale, after their transposition."""
    return (q @ (k.mT / math.sqrt(D))).softmax(-1) @ v


@_plain()
def scale_on_both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Half of the scale on each side."""
    half = math.sqrt(1 / math.sqrt(D))
    return ((q * half) @ (k * half).mT).softmax(-1) @ v


@_plain()
def scale_in_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A scale on the queries, another on the scores, and a negation undone."""
    scores = -((q / 2) @ k.mT)
    return (scores * (-2 / math.sqrt(D))).softmax(-1) @ v


@_spelling(take(normal(B, S, E), normal(B, SK, E), normal(E, E, std=0.2), normal(E, E, std=0.2)))
def scale_before_heads(x: Tensor, y: Tensor, wq: Tensor, wk: Tensor) -> Tensor:
    """Queries are scaled before heads are split off."""
    q = (F.linear(x, wq) * D**-0.5).view(B, -1, H, D).transpose(1, 2).contiguous()
    k = F.linear(y, wk).view(B, -1, H, D).transpose(1, 2).contiguous()
    v = y.view(B, -1, H, D).transpose(1, 2).contiguous()
    return (torch.matmul(q, k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)


@_other(equals=partial(F.scaled_dot_product_attention, scale=0.3))
def scale_baddbmm_alpha_and_beta(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """baddbmm over zeros, so that beta has nothing to weigh."""
    q3, k3 = q.flatten(0, 1), k.flatten(0, 1)
    zeros = torch.zeros(1, 1, k3.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(zeros, q3, k3.mT, beta=0.7, alpha=0.3)
    return scores.view(*q.shape[:3], -1).softmax(-1) @ v


@_other(equals=partial(F.scaled_dot_product_attention, scale=0.25))
def scale_full_tensor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A 0-d divisor made by torch.full in the dtype of the scores."""
    scores = q @ k.mT
    return (scores / torch.full([], 4.0, dtype=q.dtype, device=q.device)).softmax(-1) @ v


@_plain()
def scale_root_tensor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A 0-d fp32 divisor made by torch.sqrt of a torch.tensor."""
    root = torch.sqrt(torch.tensor(q.size(-1), dtype=torch.float32, device=q.device))
    return (q @ (k / root.to(q.dtype)).mT).softmax(-1) @ v


@_plain()
def scale_root_tensor_on_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A 0-d fp32 factor that does not promote the scores."""
    factor = torch.tensor(float(D), device=q.device).rsqrt()
    return ((q @ k.mT) * factor).softmax(-1) @ v


@_spelling(take(*qkv(sk=SK), normal(H, 1, 1, std=0.4)))
def scale_learned_per_head(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """A trained temperature for each head."""
    return ((q @ k.mT) * temperature.exp()).softmax(-1) @ v


@_spelling(take(*qkv(), normal(H, 1, 1, std=0.4)))
def scale_cosine(q: Tensor, k: Tensor, v: Tensor, logit: Tensor) -> Tensor:
    """Normalised queries and keys under a clamped, trained temperature."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    return (scores * torch.clamp(logit, max=math.log(100.0)).exp()).softmax(-1) @ v


@_spelling(take(*qkv(sk=SK), normal()))
def scale_learned_scalar(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    """A trained 0-d temperature divides the scores."""
    return ((q @ k.mT) / (1 + F.softplus(temperature))).softmax(-1) @ v


@_spelling(take(*qkv(sk=SK), normal(B, 1, S, 1)))
def scale_per_query(q: Tensor, k: Tensor, v: Tensor, sharpness: Tensor) -> Tensor:
    """Every query has a temperature of its own."""
    return ((q @ k.mT) * sharpness.sigmoid()).softmax(-1) @ v


@_spelling(take(*qkv(sk=SK), normal(B, 1, 1, SK)))
def scale_per_key(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Every key has a factor of its own before the softmax."""
    return ((q @ k.mT) * weight).softmax(-1) @ v


@_spelling(take(*qkv(), fixed(lambda: torch.linspace(-3, 0, S))))
def scale_after_the_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Scores plus bias, then the scale on their sum, in place."""
    scores = q @ k.mT + bias
    scores *= D**-0.5
    return scores.softmax(-1) @ v


@_spelling(take(*qkv(), normal(H, S, S)))
def scale_before_the_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The scale on the scores alone, then a trained bias."""
    return (torch.matmul(q, k.mT) * D**-0.5 + bias).softmax(-1) @ v


@_spelling(take(*qkv(), normal(1, H, S, S)))
def scale_as_add_alpha(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """torch.add weighs its second operand: bias + alpha * scores."""
    return torch.add(bias, q @ k.mT, alpha=D**-0.5).softmax(-1) @ v


@_other()
def softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores squashed by a scaled tanh."""
    scores = (q @ k.mT) * D**-0.5
    return (torch.tanh(scores / 3.0) * 3.0).softmax(-1) @ v


@_spelling(take(*qkv()))
def softcap_and_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scale, cap, causal mask and fp32 softmax in one line each."""
    scores = torch.matmul(q, k.transpose(2, 3)) * 0.4
    scores = scores / 2.5
    scores = torch.tanh(scores)
    scores = scores * 2.5
    shape = (q.shape[-2], k.shape[-2])
    hidden = torch.full(shape, torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device)
    scores = scores + hidden.triu(1)[None, None]
    p = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(p, p=0.0, training=False), v).transpose(1, 2).contiguous()


@_other()
def clamped_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores kept in a range before the softmax."""
    return ((q @ k.mT) * D**-0.5).clamp(min=-2.0, max=3.0).softmax(-1) @ v


@_other()
def hand_written_tanh_cap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A soft cap through a rational function of the score."""
    scores = (q @ k.mT) * D**-0.5
    return (scores / (1 + scores.abs() / 5)).softmax(-1) @ v


class ScaleBuffer(nn.Module):
    """The scale is a buffer of the module."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(D**-0.5))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, S, D) operands."""
        return ((q * self.scale) @ k.mT).softmax(-1) @ v


_plain()(ScaleBuffer)
