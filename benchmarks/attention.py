"""Attention as its authors write it, at B1 H8 S1024 D64 (`SHAPE`), forward and backward.

The functions are spelled the way models spell them; what stock Inductor does with each is in
the table that this prints. `sdpa`, the yardstick, is a plain scaled_dot_product_attention call
of the same shape: no mask, no bias, the least that any of them can cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Port, Workload
from benchmarks.providers import SDPA

Tensor = torch.Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes: batch, query heads, key heads, positions, head dimension."""

    b: int = 1
    h: int = 8
    h_kv: int = 8
    s: int = 1024
    d: int = 64


SHAPE = Shape()
SMALL = Shape(s=128)
"""For `--quick`."""

WINDOW, SOFTCAP = 256, 50.0
BUCKETS, MAX_DISTANCE = 32, 128


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.softmax(dim=-1) @ v


def additive_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """A mask that the caller hands over as numbers to add."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + mask
    return scores.softmax(dim=-1) @ v


def alibi(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    """Scores fall off with distance, by a slope for each head (Press et al. 2022)."""
    at = torch.arange(q.shape[-2], device=q.device)
    distance = (at[:, None] - at[None, :]).abs().to(q.dtype)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(scores - slopes[:, None, None] * distance, dim=-1) @ v


def t5_bias(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """A learned bias for each head and bucket of relative positions (Raffel et al. 2020)."""
    at = torch.arange(q.shape[-2], device=q.device)
    bucket = t5_bucket(at[None, :] - at[:, None])
    bias = F.embedding(bucket, table).permute(2, 0, 1).unsqueeze(0)
    scores = torch.matmul(q, k.transpose(3, 2))
    scores += bias
    return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v)


def t5_bucket(relative: Tensor) -> Tensor:
    """transformers' T5 `_relative_position_bucket`, bidirectional."""
    half, exact = BUCKETS // 2, BUCKETS // 4
    side = (relative > 0).to(torch.long) * half
    near = relative.abs()
    spread = torch.log(near.float() / exact) / math.log(MAX_DISTANCE / exact)
    far = exact + (spread * (half - exact)).to(torch.long)
    far = torch.min(far, torch.full_like(far, half - 1))
    return side + torch.where(near < exact, near, far)


def sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, and no further back than `WINDOW` keys."""
    at = torch.arange(q.shape[-2], device=q.device)
    back = at[:, None] - at[None, :]
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = scores.masked_fill((back < 0) | (back >= WINDOW), float("-inf"))
    return scores.softmax(dim=-1) @ v


def softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores squeezed into ±`SOFTCAP` (Gemma 2)."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = torch.tanh(scores / SOFTCAP) * SOFTCAP
    return scores.softmax(dim=-1) @ v


def transformers_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """transformers' `eager_attention_forward` with the causal mask it builds."""
    at = torch.arange(q.shape[-2], device=q.device)
    allowed = at[None, :] <= at[:, None]
    lowest = torch.finfo(q.dtype).min
    mask = torch.where(allowed, torch.zeros((), dtype=q.dtype, device=q.device), lowest)
    weights = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    weights = weights + mask[None, None]
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = F.dropout(weights, p=0.0, training=True)
    return torch.matmul(weights, v).transpose(1, 2).contiguous()


def gqa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Grouped queries: key heads repeated by expand and reshape, causal by masked_fill."""
    b, heads, s, d = q.shape
    groups = heads // k.shape[1]
    k = k[:, :, None].expand(b, k.shape[1], groups, s, d).reshape(b, heads, s, d)
    v = v[:, :, None].expand(b, v.shape[1], groups, s, d).reshape(b, heads, s, d)
    future = torch.ones(s, s, dtype=torch.bool, device=q.device).triu(1)
    scores = q @ k.transpose(-2, -1) * d**-0.5
    return scores.masked_fill(future, float("-inf")).softmax(dim=-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def _sdpa_bshd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _sdpa(q, k, v).transpose(1, 2).contiguous()


def _mask(shape: Shape) -> Tensor:
    """A mask with no structure to find: about one key in ten left out of every row."""
    gone = torch.rand(shape.b, 1, shape.s, shape.s) < 0.1
    return torch.zeros(gone.shape).masked_fill(gone, -1e4)


def _slopes(shape: Shape) -> Tensor:
    return 2.0 ** -(8.0 * torch.arange(1, shape.h + 1) / shape.h)


@dataclass(frozen=True)
class Spelling:
    """One way to write attention.

    Attributes:
        fn: `(q, k, v, *extra) -> output`.
        extra: builds the extra argument.
        trains_extra: the extra argument takes a gradient too, where there is a backward.
        full: also measured forward and backward.
        h_kv: key heads, where they are fewer.
        bshd: the output has the heads after the positions.
    """

    fn: Callable[..., Tensor]
    extra: Callable[[Shape], Tensor] | None = None
    trains_extra: bool = False
    full: bool = False
    h_kv: int | None = None
    bshd: bool = False


SPELLINGS: dict[str, Spelling] = {
    "plain": Spelling(plain, full=True),
    "additive_mask": Spelling(additive_mask, _mask, full=True),
    "alibi": Spelling(alibi, _slopes, full=True),
    "t5_bias": Spelling(t5_bias, lambda s: torch.randn(BUCKETS, s.h), trains_extra=True, full=True),
    "sliding_window": Spelling(sliding_window),
    "softcap": Spelling(softcap),
    "transformers_causal": Spelling(transformers_causal, full=True, bshd=True),
    "gqa_causal": Spelling(gqa_causal, h_kv=2),
}


def build(
    spelling: Spelling, shape: Shape, dtype: torch.dtype, device: torch.device, mode: str
) -> Case:
    """Random inputs for one spelling."""
    train = mode == "full"

    def put(x: Tensor, leaf: bool) -> Tensor:
        return x.to(device, dtype).requires_grad_(leaf and train)

    kv = (shape.b, spelling.h_kv or shape.h_kv, shape.s, shape.d)
    q = put(torch.randn(shape.b, shape.h, shape.s, shape.d), True)
    # T5 has no scale of its own: its weights are initialised small instead.
    k = put(torch.randn(kv) * (shape.d**-0.5 if spelling.fn is t5_bias else 1.0), True)
    args = (q, k, put(torch.randn(kv), True))
    if spelling.extra is not None:
        args = (*args, put(spelling.extra(shape), spelling.trains_extra))
    out = (shape.b, shape.s, shape.h, shape.d) if spelling.bshd else q.shape
    cotangents = (torch.randn(out).to(device, dtype),) if train else ()
    yardstick = _sdpa_bshd if spelling.bshd else _sdpa
    return Case(spelling.fn, args, cotangents, ports={SDPA: Port(yardstick, same=False)})


def workloads(quick: bool) -> list[Workload]:
    """All spellings."""
    shape = SMALL if quick else SHAPE

    def one(name: str, spelling: Spelling) -> Workload:
        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(spelling, shape, dtype, device, mode)

        modes = ("forward", "full") if spelling.full else ("forward",)
        config = {"B": shape.b, "H": shape.h, "H_kv": spelling.h_kv or shape.h, "D": shape.d}
        return Workload("attention", name, case, modes, ("S", shape.s), config)

    return [one(name, spelling) for name, spelling in SPELLINGS.items()]
