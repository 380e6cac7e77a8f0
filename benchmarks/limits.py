"""The least that a device could take: its rates, and the work that an attention or a mixture is.

Attention:
FLOPs = 4 B H Sq Skv D density, and the backward 2.5 times as many
bytes = q, k, v and the result once; the backward reads them and the result's gradient, and
        writes three gradients: twice as many

A mixture of experts:
FLOPs = 6 T K H I, and the backward twice as many
bytes = tokens, results and the matrices of experts that somebody chose once; the backward twice
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fuser.profiling.work import (
    ATTENTION_BACKWARD,
    Rates,
    Work,
    attention_flops,
    experts_chosen,
)

RATES = {"H200": Rates(4.3e12, 790e12)}
"""By a part of the device's name. Others are measured when a benchmark starts."""


@dataclass(frozen=True)
class Sizes:
    """Batch, query heads, key heads, queries, keys, features; `window` where keys are limited."""

    b: int
    h: int
    h_kv: int
    sq: int
    skv: int
    d: int
    window: int = 0

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.h // self.h_kv

    @property
    def query(self) -> tuple[int, int, int, int]:
        return self.b, self.h, self.sq, self.d

    @property
    def key(self) -> tuple[int, int, int, int]:
        return self.b, self.h_kv, self.skv, self.d


def everything(sizes: Sizes) -> int:
    """Pairs of positions where no mask leaves any out."""
    return sizes.sq * sizes.skv


def causal(sizes: Sizes) -> int:
    """Pairs under a causal mask of a square matrix, no further back than the window."""
    s, back = sizes.sq, min(sizes.window or sizes.sq, sizes.sq)
    return back * (back + 1) // 2 + (s - back) * back


def attention(sizes: Sizes, pairs: int, dtype: torch.dtype, mode: str) -> Work:
    """The work of one attention; `mode` "full" is forward and backward."""
    backward = mode == "full"
    forward = attention_flops(sizes.b * sizes.h, pairs, sizes.d, sizes.d)
    flops = float(forward) * (1.0 + (ATTENTION_BACKWARD if backward else 0.0))
    numbers = 2 * math.prod(sizes.query) + 2 * math.prod(sizes.key)
    return Work(flops, float(numbers * dtype.itemsize * (3 if backward else 1)))


@dataclass(frozen=True)
class Mixture:
    """Tokens, features, hidden features of an expert, experts, and how many each token takes."""

    t: int
    h: int
    i: int
    e: int
    k: int

    @property
    def chosen(self) -> float:
        """Experts that at least one token takes, on the average where all are as likely."""
        return float(experts_chosen(self.e, self.k, self.t))


def mixture(of: Mixture, dtype: torch.dtype, mode: str) -> Work:
    """The work of one mixture of gated experts, its router left out."""
    times = 3 if mode == "full" else 1
    flops = 6.0 * of.t * of.k * of.h * of.i * times
    numbers = 3 * of.chosen * of.h * of.i + 2 * of.t * of.h
    return Work(flops, numbers * dtype.itemsize * times)
