"""Spellings in one node: scaled_dot_product_attention under a mask, and torch's own modules."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import (
    DV,
    KV,
    SK,
    B,
    D,
    E,
    H,
    S,
    Spelling,
    fixed,
    integers,
    kept_keys,
    normal,
    qkv,
    spelling,
    take,
)

COMPOSITES: list[Spelling] = []
_spelling = partial(spelling, COMPOSITES)
_causal = partial(
    _spelling, take(*qkv()), equals=partial(F.scaled_dot_product_attention, is_causal=True)
)
_masked = partial(_spelling, take(*qkv(dv=DV)))
_open = partial(_spelling, take(*qkv(sk=SK, dv=DV)), equals=F.scaled_dot_product_attention)


def _positions(x: Tensor) -> tuple[Tensor, Tensor]:
    positions = torch.arange(x.shape[-2], device=x.device)
    return positions[:, None], positions[None, :]


@_causal()
def sdpa_causal_by_arange(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bool mask of compared ranges, expanded to four axes, with keyword arguments."""
    rows, columns = _positions(q)
    mask = (columns <= rows)[None, None].expand(q.shape[0], -1, -1, -1)
    return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, dropout_p=0.0)


@_causal()
def sdpa_causal_by_tril(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bool tril, every argument by position."""
    mask = torch.ones(S, S, dtype=torch.bool, device=q.device).tril(diagonal=0)
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, False)


@_causal()
def sdpa_causal_by_triu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A float triangle of -inf above the diagonal."""
    mask = torch.full((S, S), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@_causal()
def sdpa_causal_lowest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A float triangle of lowest numbers, chosen by where and contiguous."""
    rows, columns = _positions(q)
    zero = torch.zeros([], dtype=q.dtype, device=q.device)
    mask = torch.where(columns > rows, torch.finfo(q.dtype).min, zero)[None, None].contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=D**-0.5)


@_masked()
def sdpa_sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal and no further back than six positions."""
    rows, columns = _positions(q)
    mask = (columns <= rows) & (columns > rows - 7)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None])


@_masked()
def sdpa_sliding_window_by_triangles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A window as the difference of two triangles."""
    ones = torch.ones(S, S, dtype=torch.bool, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=ones.tril() ^ ones.tril(-7))


@_masked()
def sdpa_chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal inside chunks of eight."""
    rows, columns = _positions(q)
    mask = (columns <= rows).logical_and(torch.eq(rows // 8, columns // 8))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@_masked()
def sdpa_prefix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Five keys are seen by all, the rest causally."""
    mask = torch.tril(torch.ones(S, S, device=q.device))
    mask[:, :5] = 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool())


@_open()
def sdpa_mask_of_ones(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bool mask that hides nothing."""
    mask = torch.ones(1, 1, S, SK, dtype=torch.bool, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@_open()
def sdpa_mask_of_zeros(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A float mask that adds nothing."""
    mask = torch.zeros(S, SK, dtype=q.dtype, device=q.device)
    return F.scaled_dot_product_attention(q, k, v, mask)


@_open()
def sdpa_window_wider_than_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A window that reaches past both ends."""
    rows = torch.arange(S, device=q.device)[:, None]
    columns = torch.arange(SK, device=q.device)
    mask = (rows - columns).abs() < 64
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@_spelling(
    take(*qkv(kv=KV)),
    equals=partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True, scale=0.5),
)
def sdpa_grouped_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """enable_gqa, a scale and an explicit triangle."""
    mask = torch.ones(S, S, dtype=torch.bool, device=q.device).tril()
    return F.scaled_dot_product_attention(q, k, v, mask, scale=0.5, enable_gqa=True)


@_spelling(take(*qkv(kv=KV)))
def sdpa_repeated_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads repeated before a call with an explicit mask, as decoders do."""
    b, heads, s, d = k.shape
    k = k[:, :, None].expand(b, heads, H // heads, s, d).reshape(b, H, s, d)
    v = v[:, :, None].expand(b, heads, H // heads, s, d).reshape(b, H, s, d)
    rows, columns = _positions(q)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=(columns <= rows)[None, None], dropout_p=0.0, scale=d**-0.5,
        is_causal=False,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous()


@_spelling(take(*qkv(sk=SK, dv=DV)))
def sdpa_causal_from_the_end(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fewer queries than keys, the last of each aligned."""
    mask = torch.ones(S, SK, dtype=torch.bool, device=q.device).tril(SK - S)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@_spelling(take(*qkv()), attentions=2)
def sdpa_two_layers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two calls share one mask."""
    rows, columns = _positions(q)
    mask = torch.logical_not(columns > rows)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.scaled_dot_product_attention(x, k, v, attn_mask=mask)


_packed = (normal(3 * E, E, std=0.2), normal(3 * E, std=0.1), normal(E, E, std=0.1), normal(E))


@_spelling(take(normal(S, B, E), *_packed))
def mha_forward(x: Tensor, wi: Tensor, bi: Tensor, wo: Tensor, bo: Tensor) -> Tensor:
    """The functional form without weights returned."""
    return F.multi_head_attention_forward(
        x, x, x, E, H, wi, bi, None, None, False, 0.0, wo, bo, training=False, need_weights=False
    )[0]


@_spelling(take(normal(S, B, E), *_packed))
def mha_forward_weights_ignored(
    x: Tensor, wi: Tensor, bi: Tensor, wo: Tensor, bo: Tensor
) -> Tensor:
    """Averaged weights are asked for and dropped."""
    return F.multi_head_attention_forward(
        x, x, x, E, H, wi, bi, None, None, False, 0.1, wo, bo, training=False
    )[0]


@_spelling(take(normal(S, B, E), normal(SK, B, E), *_packed, fixed(lambda: ~kept_keys(B, SK))))
def mha_forward_padded(
    x: Tensor, y: Tensor, wi: Tensor, bi: Tensor, wo: Tensor, bo: Tensor, padding: Tensor
) -> Tensor:
    """Cross attention with padded keys hidden."""
    return F.multi_head_attention_forward(
        x, y, y, E, H, wi, bi, None, None, False, 0.0, wo, bo, training=False,
        key_padding_mask=padding, need_weights=False,
    )[0]  # fmt: skip


class AttentionModule(nn.Module):
    """nn.MultiheadAttention, batch first, under a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(E, H, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, E) tokens."""
        mask = torch.ones(S, S, dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class AttentionModuleUnmasked(AttentionModule):
    """nn.MultiheadAttention called plainly: its fast path is one native node without autograd."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, E) tokens."""
        return self.attention(x, x, x, need_weights=False)[0]


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer: one native node without autograd, many with it."""

    norm_first = False

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            E, H, 112, dropout=0.1, activation="gelu", batch_first=True, norm_first=self.norm_first
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, E) tokens."""
        return self.layer(x)


class EncoderLayerCausal(EncoderLayer):
    """The layer with norms first and a float mask of the future."""

    norm_first = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, E) tokens."""
        mask = nn.Transformer.generate_square_subsequent_mask(S, x.device, x.dtype)
        return self.layer(x, src_mask=mask)


class EncoderLayerPadded(EncoderLayer):
    """The layer with padded keys hidden."""

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """(B, S, E) tokens and a (B, S) mask."""
        return self.layer(x, src_key_padding_mask=None if kept is None else ~kept)


class DecoderLayer(nn.Module):
    """nn.TransformerDecoderLayer: a causal and a cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(E, H, 112, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """(B, S, E) tokens over a (B, SK, E) memory."""
        mask = torch.full((S, S), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        return self.layer(x, memory, tgt_mask=mask)


class Decoder(nn.Module):
    """A token-level decoder block with grouped heads and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(31, E), nn.Embedding(40, E)
        self.q = nn.Linear(E, H * D, bias=False)
        self.kv = nn.Linear(E, 2 * KV * D, bias=False)
        self.out = nn.Linear(H * D, E)
        self.norm = nn.LayerNorm(E)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, S) token ids."""
        b, s = ids.shape
        positions = torch.arange(s, device=ids.device)
        x = self.tokens(ids) + self.places(positions)
        h = self.norm(x)
        q = self.q(h).view(b, s, KV, H // KV, D).permute(0, 2, 3, 1, 4)
        k, v = self.kv(h).view(b, s, 2, KV, 1, D).permute(2, 0, 3, 4, 1, 5)
        scores = torch.matmul(q, k.transpose(-1, -2)) / D**0.5
        scores = scores.masked_fill(positions > positions[:, None], torch.finfo(x.dtype).min)
        out = (scores.softmax(-1) @ v).permute(0, 3, 1, 2, 4).reshape(b, s, H * D)
        return x + self.out(out)


_spelling(take(normal(B, S, E)))(AttentionModule)
_spelling(take(normal(B, S, E)))(AttentionModuleUnmasked)
_spelling(take(normal(B, S, E)))(EncoderLayer)
_spelling(take(normal(B, S, E)))(EncoderLayerCausal)
_spelling(take(normal(B, S, E), fixed(kept_keys)))(EncoderLayerPadded)
_spelling(take(normal(B, S, E), normal(B, SK, E)), attentions=2)(DecoderLayer)
_spelling(take(integers(B, S, high=31)))(Decoder)
