"""Spellings by additive position bias: ALiBi, bucketed embeddings, tables, decomposed axes."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import B, D, H, S, Spelling, fixed, normal, qkv, spelling, take

BIASES: list[Spelling] = []
_spelling = partial(spelling, BIASES)
_self = partial(_spelling, take(*qkv()))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


def _slopes(like: Tensor) -> Tensor:
    return 2.0 ** (-torch.arange(1, H + 1, device=like.device, dtype=torch.float32) * 8 / H)


def _hide_future(scores: Tensor) -> Tensor:
    shape, lowest = scores.shape[-2:], torch.finfo(scores.dtype).min
    future = torch.ones(shape, dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, lowest)


@_self()
def alibi_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slopes times key positions as [H, 1, T], then the triangle."""
    alibi = _slopes(q)[:, None, None] * torch.arange(k.shape[-2], device=q.device)
    return _hide_future(_scores(q, k) + alibi.to(q.dtype)).softmax(-1) @ v


@_self()
def alibi_distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Slopes times negated absolute distances, both directions visible."""
    positions = torch.arange(q.shape[-2], device=q.device)
    distance = (positions[None, :] - positions[:, None]).abs().to(q.dtype)
    return (_scores(q, k) - _slopes(q).to(q.dtype).view(1, H, 1, 1) * distance).softmax(-1) @ v


@_self()
def alibi_in_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The bias is baddbmm's input, the scale its alpha; fp32 softmax and casts."""
    b, h, s, d = q.shape
    alibi = (_slopes(q)[:, None, None] * torch.arange(s, device=q.device)).to(q.dtype)
    alibi = alibi.repeat(b, 1, 1)
    keys = k.reshape(b * h, s, d).transpose(-1, -2)
    scores = alibi.baddbmm(q.reshape(b * h, s, d), keys, beta=1.0, alpha=d**-0.5)
    scores = _hide_future(scores.view(b, h, s, -1))
    p = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    p = F.dropout(p, 0.1, training=False).view(b * h, s, -1)
    out = torch.bmm(p, v.reshape(b * h, s, -1)).view(b, h, s, -1)
    return out.permute(0, 2, 1, 3).reshape(b, s, -1)


@_self()
def alibi_then_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The bias is added before an in-place scale of the sum, softmax in fp32."""
    alibi = (_slopes(q)[:, None] * torch.arange(k.shape[-2], device=q.device)).to(q.dtype)
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores = scores + alibi.view(1, H, 1, -1)
    scores *= D**-0.5
    p = F.softmax(_hide_future(scores), dim=-1, dtype=torch.float32).to(q.dtype)
    return p @ v


@_spelling(take(*qkv(), normal(H, S, S)))
def trained_bias_per_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """A trained [H, T, T] bias on the left of the sum."""
    return (bias.unsqueeze(0) + _scores(q, k)).softmax(-1) @ v


@_spelling(take(*qkv(), normal(B, 1, S, S)))
def trained_bias_per_sample(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """A [B, 1, T, T] bias that wants a gradient, as in pair representations."""
    scores = _scores(q, k)
    scores += bias
    return scores.softmax(-1) @ v


@_spelling(take(*qkv(), normal(B, S, S, H)))
def pair_bias_heads_last(q: Tensor, k: Tensor, v: Tensor, pair: Tensor) -> Tensor:
    """A bias projected from pairs, its heads permuted into place."""
    return (_scores(q, k) + pair.permute(0, 3, 1, 2)).softmax(-1) @ v


@_spelling(take(*qkv(), normal(2 * S - 1, H)))
def trained_table_by_offset(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """A trained table looked up by relative offset."""
    positions = torch.arange(q.shape[-2], device=q.device)
    offsets = positions[:, None] - positions[None, :] + q.shape[-2] - 1
    bias = table[offsets.view(-1)].view(S, S, -1).permute(2, 0, 1).contiguous()
    return (_scores(q, k) + bias.unsqueeze(0)).softmax(-1) @ v


@_spelling(take(*qkv(), normal(2 * S - 1, D, std=0.5)))
def query_dependent_offsets(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Each query also meets an embedding of its offset to each key."""
    positions = torch.arange(q.shape[-2], device=q.device)
    relative = F.embedding(positions[:, None] - positions[None, :] + S - 1, table)
    return (_scores(q, k) + torch.einsum("bhld,lrd->bhlr", q, relative)).softmax(-1) @ v


class BucketedBias(nn.Module):
    """An embedding of logarithmic distance buckets, no scale, fp32 softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, H)

    def bias(self, like: Tensor) -> Tensor:
        """(1, H, S, S) bias for (B, H, S, D) queries."""
        positions = torch.arange(like.shape[-2], device=like.device)
        offsets = positions[None, :] - positions[:, None]
        far = 4 + torch.log(offsets.abs().float().clamp(min=1) / 4) / 2.0 * 4
        distance = torch.where(offsets.abs() < 4, offsets.abs(), far.long().clamp(max=7))
        buckets = distance + (offsets > 0).to(torch.long) * 8
        return self.embedding(buckets).permute([2, 0, 1]).unsqueeze(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, S, D) operands."""
        scores = torch.matmul(q, k.transpose(3, 2)) * 1
        scores += self.bias(q)
        return F.softmax(scores.float(), dim=-1).type_as(scores) @ v


class BucketedBiasTwice(BucketedBias):
    """Two layers share one bucketed bias, masked once."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, S, D) operands."""
        bias = _hide_future(self.bias(q))
        x = (torch.matmul(q, k.mT) + bias).softmax(-1) @ v
        return (torch.matmul(x, k.mT) + bias).softmax(-1) @ v


_self()(BucketedBias)
_self(attentions=2)(BucketedBiasTwice)


class WindowTable(nn.Module):
    """A trained table indexed by a buffer, for windows of 3 x 3 tokens."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(25, H))
        grid = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
        offsets = grid.flatten(1)[:, :, None] - grid.flatten(1)[:, None, :] + 2
        self.register_buffer("index", offsets[0] * 5 + offsets[1])

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B * windows, H, 9, D) operands."""
        bias = self.table[self.index.view(-1)].view(9, 9, -1).permute(2, 0, 1).contiguous()
        scores = (q * D**-0.5) @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return (F.dropout(scores.softmax(-1), 0.1, self.training) @ v).transpose(1, 2).flatten(2)


class WindowCosine(WindowTable):
    """Cosine scores, a trained temperature and a bounded table."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((H, 1, 1), 1.5))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B * windows, H, 9, D) operands."""
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.logit, max=4.6).exp()
        bias = 16 * torch.sigmoid(self.table[self.index.view(-1)].view(9, 9, -1))
        return (scores + bias.permute(2, 0, 1).unsqueeze(0)).softmax(dim=-1) @ v


_spelling(take(*qkv(batch=10, sq=9, sk=9)))(WindowTable)
_spelling(take(*qkv(batch=10, sq=9, sk=9)))(WindowCosine)


@_spelling(take(*qkv(sq=35, sk=35), normal(5, 5, D, std=0.4), normal(7, 7, D, std=0.4)))
def decomposed_axes(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Row and column terms are added in a view that splits the keys into two axes."""
    b, h, s, d = q.shape
    scores = (q * D**-0.5) @ k.transpose(-2, -1)
    pictures = q.reshape(b, h, 5, 7, d)
    by_row = torch.einsum("bnhwc,hkc->bnhwk", pictures, rows)
    by_column = torch.einsum("bnhwc,wkc->bnhwk", pictures, columns)
    scores = scores.view(b, h, 5, 7, 5, 7) + by_row[..., :, None] + by_column[..., None, :]
    p = F.softmax(scores.view(b, h, s, s), dtype=torch.float32, dim=-1).to(q.dtype)
    return (p @ v).transpose(1, 2).reshape(b, s, -1)


@_spelling(take(*qkv(batch=5, heads=6, sq=35, sk=35), normal(5, 6, 5, 7, 5), normal(5, 6, 5, 7, 7)))
def decomposed_axes_folded(
    q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor
) -> Tensor:
    """The split terms are joined into one bias before they meet the scores."""
    bias = by_row[..., :, None] + by_column[..., None, :]
    return (_scores(q, k) + bias.reshape(5, 6, 35, 35)).softmax(-1) @ v


class Disentangled(nn.Module):
    """Content-to-position and position-to-content terms gathered by offset, 3-D heads."""

    span = 6

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(H, 2 * self.span, D) * 0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
        """(B, H, S, D) operands and a (B, 1, S, S) bool mask of hidden keys."""
        b, h, s, d = q.shape
        q, k, v = q.reshape(-1, s, d), k.reshape(-1, s, d), v.reshape(-1, s, d)
        scale = torch.sqrt(torch.tensor(d, dtype=torch.float32, device=q.device) * 3)
        scores = torch.bmm(q, k.transpose(-1, -2) / scale.to(q.dtype))
        positions = torch.arange(s, device=q.device)
        offsets = positions[:, None] - positions[None, :]
        places = self.embeddings.repeat(b, 1, 1)
        index = torch.clamp(offsets + self.span, 0, 2 * self.span - 1).expand(b * h, s, s)
        content = torch.bmm(q, places.transpose(-1, -2)).gather(-1, index)
        scores = scores + content / scale.to(q.dtype)
        position = torch.bmm(k, places.transpose(-1, -2)).gather(-1, index).transpose(-1, -2)
        scores += position / scale.to(q.dtype)
        scores = scores.view(b, h, s, s)
        scores = scores.masked_fill(hidden, torch.finfo(q.dtype).min)
        return torch.bmm(scores.softmax(-1).view(b * h, s, s), v).view(b, h, s, d)


def _nearby() -> Tensor:
    positions = torch.arange(S)
    return ((positions[:, None] - positions).abs() > 9).expand(B, 1, S, S).clone()


_spelling(take(*qkv(), fixed(_nearby)))(Disentangled)
