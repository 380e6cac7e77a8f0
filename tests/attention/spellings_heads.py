"""Spellings by head sharing, key/value caches, latent keys and several attentions at once."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import DV, KV, SK, B, D, G, H, S, Spelling, integers, normal, qkv, spelling, take
from .spellings_forms import attend

HEADS: list[Spelling] = []
_spelling = partial(spelling, HEADS)


def _grouped_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def _multi_query_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k.expand(B, H, -1, -1), v.expand(B, H, -1, -1))


_grouped = partial(_spelling, take(*qkv(kv=KV, sk=SK, dv=DV)), equals=_grouped_reference)
_shared = partial(_spelling, take(*qkv(kv=1, sk=SK, dv=DV)), equals=_multi_query_reference)


def _repeated(x: Tensor, times: int) -> Tensor:
    b, heads, s, d = x.shape
    return x[:, :, None, :, :].expand(b, heads, times, s, d).reshape(b, heads * times, s, d)


@_grouped()
def groups_expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads repeated by index, expand and reshape; fp32 softmax."""
    k, v = _repeated(k, G), _repeated(v, G)
    scores = torch.matmul(q, k.transpose(2, 3)) * D**-0.5
    return torch.matmul(F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype), v)


@_grouped()
def groups_expanded_flattened(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """unsqueeze, expand with -1 and flatten."""
    k = k.unsqueeze(2).expand(-1, -1, G, -1, -1).flatten(1, 2)
    v = v.unsqueeze(2).expand(-1, -1, G, -1, -1).flatten(1, 2)
    return attend(q, k, v)


@_grouped()
def groups_interleaved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """repeat_interleave over the head axis."""
    return attend(q, k.repeat_interleave(G, dim=1), torch.repeat_interleave(v, G, dim=-3))


@_grouped()
def groups_stacked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """repeat over an axis of size one, then a reshape."""
    k = k[:, :, None].repeat(1, 1, G, 1, 1).view(B, H, SK, D)
    v = v[:, :, None].repeat(1, 1, G, 1, 1).view(B, H, SK, DV)
    return attend(q, k, v)


@_spelling(take(*qkv(kv=KV, sk=SK, dv=DV)))
def groups_outermost(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """repeat over the head axis itself: query head h reads key head h modulo KV."""
    return attend(q, k.repeat(1, G, 1, 1), v.repeat(1, G, 1, 1))


@_spelling(take(*qkv(kv=KV, sk=SK, dv=DV)))
def groups_outermost_joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same order of heads, made by cat."""
    return attend(q, torch.cat([k] * G, dim=1), torch.cat([v] * G, dim=1))


@_grouped()
def groups_broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries in 5-D, keys and values broadcast over the group axis."""
    grouped = q.view(B, KV, G, S, D)
    scores = (grouped @ k[:, :, None].transpose(-1, -2)) * D**-0.5
    return (scores.softmax(-1) @ v[:, :, None]).reshape(B, H, S, DV)


@_grouped()
def groups_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """einsum with an index for the group."""
    scores = torch.einsum("bkgqd,bksd->bkgqs", q.unflatten(1, (KV, G)), k) * D**-0.5
    return torch.einsum("bkgqs,bksd->bkgqd", scores.softmax(-1), v).flatten(1, 2)


@_spelling(take(normal(B, S, KV, G, D), normal(B, SK, KV, D), normal(B, SK, KV, DV)))
def groups_einsum_sequence_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The group index innermost but one, sequences first, result merged."""
    scores = torch.einsum("bqkgd,bskd->bkgqs", q, k) * D**-0.5
    return torch.einsum("bkgqs,bskd->bqkgd", scores.softmax(-1), v).reshape(B, S, -1)


@_grouped()
def groups_folded_into_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The group is folded into the query axis, so that each key head is read once."""
    folded = q.reshape(B, KV, G * S, D)
    return attend(folded, k, v).view(B, KV, G, S, DV).reshape(B, H, S, DV)


@_spelling(take(*qkv(kv=KV)))
def groups_and_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Repeated heads under a fp32 triangle of lowest numbers."""
    k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
    mask = torch.full((S, S), torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu(1)
    return ((q @ k.mT) / D**0.5 + mask).softmax(-1, dtype=torch.float32).type_as(q) @ v


@_shared()
def one_head_broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """matmul broadcasts a key head of size one."""
    return torch.matmul(torch.matmul(q, k.transpose(-2, -1)).mul(D**-0.5).softmax(-1), v)


@_shared()
def one_head_expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One key head, expanded by name."""
    return attend(q, k.expand(-1, H, -1, -1), v.expand_as(v.expand(B, H, SK, DV)))


@_shared()
def one_head_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys and values without a head axis."""
    scores = torch.einsum("bhqd,bkd->bhqk", q, k.squeeze(1)) * D**-0.5
    return torch.einsum("bhqk,bkd->bhqd", scores.softmax(-1), v[:, 0])


@_shared()
def one_head_folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All query heads folded into the query axis of one bmm, masked in the unfolded view."""
    scores = torch.bmm(q.reshape(B, H * S, D), k.squeeze(1).transpose(1, 2)) * D**-0.5
    hide = torch.zeros(S, SK, dtype=torch.bool, device=q.device)
    scores = scores.view(B, H, S, SK).masked_fill(hide, -torch.inf)
    p = scores.softmax(dim=-1).view(B, H * S, SK)
    return torch.bmm(p, v.squeeze(1)).view(B, H, S, DV)


_decode = (*qkv(kv=KV, sq=1, sk=SK), normal(B, KV, 1, D), normal(B, KV, 1, D))


@_spelling(take(*_decode))
def decode_joined_cache(q: Tensor, past_k: Tensor, past_v: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One new key is joined to the cache, one query reads all."""
    k, v = torch.cat([past_k, k], dim=-2), torch.cat([past_v, v], dim=-2)
    return attend(q, _repeated(k, G), _repeated(v, G))


@_spelling(take(*_decode, integers(1, high=SK)), trains=False)
def decode_static_cache(
    q: Tensor, cache_k: Tensor, cache_v: Tensor, k: Tensor, v: Tensor, position: Tensor
) -> Tensor:
    """The new key is copied into its place in a fixed cache, later places hidden."""
    k = cache_k.index_copy_(2, position, k)
    v = cache_v.index_copy_(2, position, v)
    keep = torch.arange(SK, device=q.device)[None, :] <= position[:, None]
    bias = torch.zeros(1, SK, dtype=q.dtype, device=q.device)
    bias = bias.masked_fill(~keep, torch.finfo(q.dtype).min)[None, None]
    scores = (q @ _repeated(k, G).mT) * D**-0.5 + bias
    return scores.softmax(-1) @ _repeated(v, G)


@_spelling(take(*_decode), trains=False)
def decode_assigned_cache(
    q: Tensor, cache_k: Tensor, cache_v: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """The new key is assigned to a slice; only the filled part is read."""
    cache_k[:, :, 17:18] = k
    cache_v[:, :, 17:18] = v
    grouped = q.view(B, KV, G, 1, D)
    scores = (grouped * D**-0.5) @ cache_k[:, :, None, :18].mT
    return (scores.softmax(-1) @ cache_v[:, :, None, :18]).flatten(1, 2)


_latent = (normal(B, H, S, D), normal(B, H, S, 6), normal(B, SK, 14), normal(B, SK, 6))
_up = (normal(H, D, 14, std=0.3), normal(H, DV, 14, std=0.3))


@_spelling(take(*_latent, *_up))
def latent_naive(
    q: Tensor, q_turn: Tensor, latent: Tensor, k_turn: Tensor, up_k: Tensor, up_v: Tensor
) -> Tensor:
    """Keys are a projected part joined to a part that all heads share; Dqk != Dv."""
    k = torch.einsum("bsc,hdc->bhsd", latent, up_k)
    v = torch.einsum("bsc,hdc->bhsd", latent, up_v)
    queries = torch.cat([q, q_turn], dim=-1)
    keys = torch.cat([k, k_turn[:, None].expand(-1, H, -1, -1)], dim=-1)
    return attend(queries, keys, v).transpose(1, 2).flatten(2)


@_spelling(take(*_latent, *_up))
def latent_assigned(
    q: Tensor, q_turn: Tensor, latent: Tensor, k_turn: Tensor, up_k: Tensor, up_v: Tensor
) -> Tensor:
    """Queries and keys are assembled by slice assignment into new tensors."""
    projected = F.linear(latent, torch.cat([up_k, up_v], dim=1).flatten(0, 1))
    k, v = projected.view(B, SK, H, D + DV).transpose(1, 2).split([D, DV], dim=-1)
    queries, keys = q.new_empty(B, H, S, D + 6), k.new_empty(B, H, SK, D + 6)
    queries[:, :, :, :D], queries[:, :, :, D:] = q, q_turn
    keys[:, :, :, :D], keys[:, :, :, D:] = k, k_turn.unsqueeze(1)
    scores = torch.matmul(queries, keys.transpose(2, 3)) * (D + 6) ** -0.5
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


@_spelling(take(*_latent, *_up))
def latent_absorbed(
    q: Tensor, q_turn: Tensor, latent: Tensor, k_turn: Tensor, up_k: Tensor, up_v: Tensor
) -> Tensor:
    """Two contractions are summed, the latent itself being keys and values."""
    absorbed = torch.einsum("bshd,hdc->bshc", q.transpose(1, 2), up_k)
    scores = torch.einsum("bshc,btc->bsht", absorbed, latent)
    scores = scores + torch.einsum("bshr,btr->bsht", q_turn.transpose(1, 2), k_turn)
    p = (scores * (D + 6) ** -0.5).softmax(dim=-1, dtype=torch.float32).type_as(q)
    return torch.einsum("bshc,hdc->bshd", torch.einsum("bsht,btc->bshc", p, latent), up_v)


@_spelling(take(*_latent, normal(B, H, SK, DV)))
def summed_contractions(q: Tensor, q2: Tensor, latent: Tensor, k2: Tensor, v: Tensor) -> Tensor:
    """Two scaled products of different depths are summed, heads shared in the second."""
    k = latent[:, None, :, :D]
    scores = (q @ k.mT) * D**-0.5 + torch.matmul(q2 * 6**-0.5, k2.unsqueeze(1).transpose(2, 3))
    return torch.softmax(scores, dim=-1) @ v


_pairs = (normal(B, H, S, D, std=1.5), normal(B, H, S, D, std=1.5))


@_spelling(take(*_pairs, *_pairs, normal(B, H, S, DV), normal()), attentions=2)
def differential(
    q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, v: Tensor, weight: Tensor
) -> Tensor:
    """The difference of two probabilities meets the values once."""
    p1 = ((q1 @ k1.mT) * D**-0.5).softmax(-1)
    p2 = ((q2 @ k2.mT) * D**-0.5).softmax(-1)
    return (p1 - weight.sigmoid() * p2) @ v


@_spelling(take(*_pairs, *_pairs, normal(B, H, S, DV)), attentions=2)
def differential_after(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, v: Tensor) -> Tensor:
    """The difference of two outputs over the same values."""
    return attend(q1, k1, v) - 0.7 * attend(q2, k2, v)


@_spelling(take(*qkv(heads=2 * H, sk=S), normal(H, 1, 1)), attentions=2)
def differential_split(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """One softmax over twice the heads, split in two by a view, then subtracted by head."""
    p = ((q @ k.mT) * D**-0.5).softmax(-1, dtype=torch.float32).type_as(q)
    p = p.view(B, H, 2, S, S)
    return (p[:, :, 0] - weight * p[:, :, 1]) @ v[:, ::2]


@_spelling(take(*qkv(sk=SK), *qkv(sk=S)[1:]), attentions=2)
def decoupled_cross(q: Tensor, k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor) -> Tensor:
    """Two attentions of the same queries over different keys are summed."""
    return attend(q, k1, v1) + 0.5 * attend(q, k2, v2)
