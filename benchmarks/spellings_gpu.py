"""Attention at the sizes of GPUs, as its authors spell it: `(q, k, v, *extra) -> (B, H, Sq, D)`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

SOFTCAP = 50.0


def repeat_kv(x: Tensor, heads: int) -> Tensor:
    """transformers' `repeat_kv`: every key head stands for several query heads."""
    b, own, s, d = x.shape
    if own == heads:
        return x
    return x[:, :, None].expand(b, own, heads // own, s, d).reshape(b, heads, s, d)


def plain_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v with what lies ahead filled with -inf."""
    s, d = q.shape[-2:]
    allowed = torch.ones(s, s, dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    return scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1) @ v


def alibi_causal(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Scores fall off with distance, by a slope for each head (Press et al. 2022)."""
    at = torch.arange(q.shape[-2], device=q.device)
    bias = slopes[:, None, None] * (at[None, :] - at[:, None])
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias.to(q.dtype)
    scores = scores.masked_fill(at[None, :] > at[:, None], float("-inf"))
    return torch.softmax(scores, dim=-1) @ v


def softcap_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """transformers' `eager_attention_forward` of Gemma 2, with the causal mask it is given."""
    s = q.shape[-2]
    mask = torch.full((s, s), torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu(1)
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    weights = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    weights = torch.tanh(weights / SOFTCAP) * SOFTCAP
    weights = weights + mask[None, None]
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)


def windowed(window: int) -> Callable[..., Tensor]:
    """`sliding_window` of that width."""

    def sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal, and no further back than `window` keys."""
        at = torch.arange(q.shape[-2], device=q.device)
        back = at[:, None] - at[None, :]
        k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        scores = scores.masked_fill((back < 0) | (back >= window), float("-inf"))
        return scores.softmax(dim=-1) @ v

    return sliding_window


def pair_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Row attention with a bias of pairs (1, H, S, S) that all rows share (AlphaFold 2)."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    return torch.softmax(scores + bias, dim=-1) @ v


def commuted_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A causal mask of -inf with the scores added to it, and repeated key heads."""
    s = q.shape[-2]
    mask = torch.full((s, s), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    scores = torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return torch.matmul(torch.softmax(mask + scores, dim=-1), v)


def decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """transformers' `eager_attention_forward` of one new token over its cache."""
    k, v = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    weights = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)
