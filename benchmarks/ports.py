"""Attention written by hand for a library: SDPA with its mask as a tensor, FlexAttention.

What can be made once is made before anything is timed, as whoever ports a model would: dense
masks, block masks, ALiBi's biases. What a parameter decides (T5's table) is computed in the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.attention import t5_bucket
from benchmarks.cases import Port
from benchmarks.limits import Sizes
from benchmarks.providers import CUDNN, FLEX, SDPA, Function
from benchmarks.spellings_gpu import SOFTCAP as CAP

Tensor = torch.Tensor
NAMES = (SDPA, CUDNN, FLEX)
Score = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(score, batch, head, query, key) -> score: FlexAttention's score_mod."""


@dataclass(frozen=True)
class Variant:
    """What a port has to know of an attention.

    Attributes:
        keep: `(query, key) -> bool`, the mask; it takes positions of any shape.
        is_causal: `keep` is SDPA's own causal mask.
        score: `*extra -> score_mod`, for FlexAttention.
        bias: `(sizes, *extra) -> (1, H, Sq, Skv)`, what is added to the scores, for SDPA.
        fixed: the bias depends on no parameter, and is made once.
        scale: of the scores; by default 1 / √d.
        sdpa: it can be written for SDPA at all.
    """

    keep: Callable[[Tensor, Tensor], Tensor] | None = None
    is_causal: bool = False
    score: Callable[..., Score] | None = None
    bias: Callable[..., Tensor] | None = None
    fixed: bool = False
    scale: float | None = None
    sdpa: bool = True


def of(variant: Variant, sizes: Sizes, args: tuple[Tensor, ...]) -> dict[str, Port]:
    """Every port that the variant has, for arguments like these."""
    found = {FLEX: Port(flex(variant, sizes, args[0].device))}
    if variant.sdpa:
        port = sdpa(variant, sizes, args)
        found |= {SDPA: Port(port), CUDNN: Port(by_cudnn(port))}
    return found


def flex(variant: Variant, sizes: Sizes, place: torch.device) -> Function:
    """FlexAttention with a score_mod, and a block mask that is made here."""
    keep, table = variant.keep, None
    if keep is not None:

        def mask_mod(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return keep(query, key)

        table = create_block_mask(mask_mod, None, None, sizes.sq, sizes.skv, device=str(place))

    def port(q: Tensor, k: Tensor, v: Tensor, *extra: Tensor) -> Tensor:
        score = None if variant.score is None else variant.score(*extra)
        return flex_attention(
            q, k, v, score, table, scale=variant.scale, enable_gqa=sizes.group > 1
        )

    return port


def sdpa(variant: Variant, sizes: Sizes, args: tuple[Tensor, ...]) -> Function:
    """SDPA; masks and biases are one tensor, unless the mask is plainly causal."""
    q, _, _, *given = args
    dense = None if variant.is_causal and variant.bias is None else _kept(variant, sizes, q.device)
    made = None
    if variant.bias is not None and variant.fixed:
        made = _joined(variant.bias(sizes, *given).to(q.dtype), dense)

    def mask(*extra: Tensor) -> Tensor | None:
        if made is not None or variant.bias is None:
            return dense if made is None else made
        return _joined(variant.bias(sizes, *extra), dense)

    def port(q: Tensor, k: Tensor, v: Tensor, *extra: Tensor) -> Tensor:
        attn_mask = mask(*extra)
        grouped = sizes.group > 1
        if grouped and attn_mask is not None:
            # no kernel takes both a mask and fewer key heads
            k, v = (x.repeat_interleave(sizes.group, 1) for x in (k, v))
            grouped = False
        causal = variant.is_causal and attn_mask is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, is_causal=causal, scale=variant.scale, enable_gqa=grouped
        )

    return port


def by_cudnn(port: Function) -> Function:
    """The same with no kernel but cuDNN's allowed."""

    def only_cudnn(*args: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return port(*args)

    return only_cudnn


def positions(sizes: Sizes, place: torch.device) -> tuple[Tensor, Tensor]:
    """Queries as a column, keys as a row."""
    queries = torch.arange(sizes.sq, device=place)
    return queries[:, None], torch.arange(sizes.skv, device=place)[None, :]


def _kept(variant: Variant, sizes: Sizes, place: torch.device) -> Tensor | None:
    return None if variant.keep is None else variant.keep(*positions(sizes, place))


def _joined(bias: Tensor, kept: Tensor | None) -> Tensor:
    return bias if kept is None else bias.masked_fill(~kept, float("-inf"))


def _before(query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def _alibi_score(slopes: Tensor) -> Score:
    return lambda score, b, h, query, key: score + slopes[h] * (key - query)


def _alibi_bias(sizes: Sizes, slopes: Tensor) -> Tensor:
    query, key = positions(sizes, slopes.device)
    return (slopes[:, None, None] * (key - query))[None]


def _capped() -> Score:
    return lambda score, b, h, query, key: torch.tanh(score / CAP) * CAP


def _t5_score(s: int) -> Callable[[Tensor], Score]:
    def score_mod(table: Tensor) -> Score:
        relative = torch.arange(1 - s, s, device=table.device)
        row = F.embedding(t5_bucket(relative), table)
        return lambda score, b, h, query, key: score + row[key - query + s - 1, h]

    return score_mod


@lru_cache(maxsize=1)
def _t5_buckets(sizes: Sizes, place: torch.device) -> Tensor:
    query, key = positions(sizes, place)
    return t5_bucket(key - query)


def _t5_dense(sizes: Sizes, table: Tensor) -> Tensor:
    bias = F.embedding(_t5_buckets(sizes, table.device), table)
    return bias.permute(2, 0, 1)[None].contiguous()


def _pair_score(bias: Tensor) -> Score:
    return lambda score, b, h, query, key: score + bias[0, h, query, key]


CAUSAL = Variant(_before, is_causal=True)
ALIBI = Variant(_before, score=_alibi_score, bias=_alibi_bias, fixed=True)
SOFTCAP = Variant(_before, score=_capped, sdpa=False)
PAIR = Variant(score=_pair_score, bias=lambda sizes, bias: bias)


def window(width: int) -> Variant:
    """Causal, and no further back than `width` keys."""
    return Variant(lambda query, key: (key <= query) & (query - key < width))


def t5(s: int) -> Variant:
    """A learned bias for each head and bucket, of `s` positions, without a scale."""
    return Variant(score=_t5_score(s), bias=_t5_dense, scale=1.0)
