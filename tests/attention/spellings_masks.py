"""Spellings by how a mask enters the scores; every row keeps at least one key."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cases import SK, B, D, H, S, Spelling, fixed, integers, kept_keys, qkv, spelling, take

MASKS: list[Spelling] = []
_spelling = partial(spelling, MASKS)
_causal = partial(
    _spelling, take(*qkv()), equals=partial(F.scaled_dot_product_attention, is_causal=True)
)
_padded = partial(_spelling, take(*qkv(), fixed(kept_keys)))


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5


def _upper(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)


def _kept(q: Tensor, mask: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])


def _padding_reference(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    return _kept(q, kept, k, v)


@_causal()
def mask_added_on_the_right(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A triangle of -inf from torch.triu over torch.full."""
    mask = torch.triu(torch.full((q.shape[-2],) * 2, float("-inf"), device=q.device), 1)
    return (_scores(q, k) + mask.to(q.dtype)).softmax(-1) @ v


@_causal()
def mask_added_on_the_left(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The mask is the first operand of the sum."""
    mask = torch.zeros(q.shape[-2], q.shape[-2], dtype=q.dtype, device=q.device)
    return torch.add(mask.masked_fill(_upper(q, k), float("-inf")), _scores(q, k)).softmax(-1) @ v


@_causal()
def mask_added_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same -inf mask is added a second time."""
    upper = _upper(q, k)
    mask = torch.zeros(upper.shape, dtype=q.dtype, device=q.device).masked_fill(upper, -torch.inf)
    return (mask + (_scores(q, k) + mask)).softmax(-1) @ v


@_causal()
def mask_iadd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`+=` of a finfo.min triangle, each row keeping its own key."""
    scores = _scores(q, k)
    scores += torch.finfo(q.dtype).min * _upper(q, k).to(q.dtype)
    return scores.softmax(-1) @ v


@_causal()
def mask_add_method_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tensor.add_ with a 4-D mask."""
    mask = _upper(q, k).to(q.dtype)[None, None] * -30000.0
    return _scores(q, k).add_(mask).softmax(-1) @ v


@_causal()
def mask_subtracted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A large number is taken away where a key is hidden."""
    keep = torch.tril(torch.ones(S, S, dtype=q.dtype, device=q.device))
    return (_scores(q, k) - 30000.0 * (1.0 - keep)).softmax(-1) @ v


@_causal()
def mask_multiplied_then_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Hidden scores are zeroed first and then lowered."""
    keep = torch.tril(torch.ones(S, S, device=q.device)).to(q.dtype).view(1, 1, S, S)
    return (_scores(q, k) * keep + -1e4 * (1 - keep)).softmax(-1) @ v


@_causal()
def mask_multiplied_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tensor.mul_ and Tensor.add_ one after the other."""
    keep = 1 - _upper(q, k).to(q.dtype)
    scores = _scores(q, k).mul_(keep)
    return scores.add_((keep - 1) * 1e4).softmax(-1) @ v


@_causal()
def masked_fill_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """masked_fill with -inf."""
    return _scores(q, k).masked_fill(_upper(q, k), float("-inf")).softmax(-1) @ v


@_causal()
def masked_fill_lowest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """masked_fill with the lowest finite number."""
    return _scores(q, k).masked_fill(_upper(q, k), torch.finfo(q.dtype).min).softmax(-1) @ v


@_causal()
def masked_fill_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tensor.masked_fill_ with the complement of a lower triangle."""
    keep = torch.ones(S, S, device=q.device, dtype=torch.bool).tril()
    return _scores(q, k).masked_fill_(~keep, float("-inf")).softmax(-1) @ v


@_causal()
def masked_fill_by_a_tensor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The filler is a 0-d tensor and the condition a comparison with zero."""
    lowest = torch.full([], torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device)
    keep = torch.tril(torch.ones(S, S, device=q.device))
    return torch.masked_fill(_scores(q, k), keep == 0, lowest).softmax(-1) @ v


@_causal()
def where_scores_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch.where(keep, scores, lowest)."""
    scores = _scores(q, k)
    lowest = torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype, device=q.device)
    return torch.where(~_upper(q, k), scores, lowest).softmax(-1) @ v


@_causal()
def where_scores_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch.where(hide, -inf, scores) with a Python number."""
    return torch.where(_upper(q, k), float("-inf"), _scores(q, k)).softmax(-1) @ v


@_causal()
def where_method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tensor.where on the scores with a comparison of positions."""
    rows = torch.arange(q.shape[2], device=q.device)[:, None]
    columns = torch.arange(k.shape[2], device=q.device)[None, :]
    return _scores(q, k).where(columns <= rows, -torch.inf).softmax(-1) @ v


@_causal()
def where_made_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A bias of zeros and lowest numbers from where over compared ranges, expanded over batch."""
    positions = torch.arange(q.shape[-2], device=q.device)
    keep = (positions[None, :] <= positions[:, None])[None, None].expand(q.shape[0], -1, -1, -1)
    zero = torch.tensor(0.0, dtype=q.dtype, device=q.device)
    mask = torch.where(keep, zero, torch.finfo(q.dtype).min)
    scores = torch.matmul(q, k.transpose(2, 3)) * D**-0.5
    scores = scores + mask[:, :, :, : k.shape[-2]]
    p = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(p, p=0.0, training=True), v)


class SlicedBuffer(nn.Module):
    """A float triangle kept larger than needed, sliced and compared with zero."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones(40, 40)).view(1, 1, 40, 40))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, S, D) operands."""
        t = q.shape[2]
        hidden = self.bias[:, :, :t, :t] == 0
        return _scores(q, k).masked_fill(hidden, float("-inf")).softmax(-1) @ v


_causal()(SlicedBuffer)


class BoolBuffer(nn.Module):
    """A bool triangle sliced with an offset, chosen by where."""

    keep: Tensor

    def __init__(self) -> None:
        super().__init__()
        keep = torch.ones(40, 40, dtype=torch.bool).tril().view(1, 1, 40, 40)
        self.register_buffer("keep", keep, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, Sq, D) queries over (B, H, Sk, D) keys aligned at their ends."""
        rows, columns = q.shape[-2], k.shape[-2]
        keep = self.keep[:, :, columns - rows : columns, :columns]
        lowest = torch.full([], torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device)
        return torch.where(keep, _scores(q, k), lowest).softmax(-1) @ v


_spelling(take(*qkv(sk=SK)))(BoolBuffer)


@_causal(equals=None)
def sliding_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query sees itself and the six keys before it."""
    positions = torch.arange(q.shape[-2], device=q.device)
    distance = positions[:, None] - positions[None, :]
    keep = (distance >= 0) & (distance < 7)
    return _scores(q, k).masked_fill(~keep, float("-inf")).softmax(-1) @ v


@_causal(equals=None)
def banded_by_triangles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A symmetric window cut out by tril and triu."""
    band = torch.ones(S, S, device=q.device, dtype=torch.bool).tril(4).triu(-3)
    return _scores(q, k).masked_fill(band.logical_not(), -1e4).softmax(-1) @ v


@_causal(equals=None)
def chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal inside chunks of eight positions."""
    positions = torch.arange(q.shape[-2], device=q.device)
    same = positions[:, None] // 8 == positions[None, :] // 8
    keep = same & (positions[None, :] <= positions[:, None])
    return torch.where(keep, _scores(q, k), torch.finfo(q.dtype).min).softmax(-1) @ v


@_causal(equals=None)
def prefix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal, but the first five keys are seen by all."""
    columns = torch.arange(k.shape[-2], device=q.device)
    keep = (columns[None, :] <= columns[:, None]) | (columns < 5)
    return _scores(q, k).masked_fill(~keep, float("-inf")).softmax(-1) @ v


@_causal(equals=None)
def two_fills(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The future and every third past key are hidden one after the other."""
    positions = torch.arange(q.shape[-2], device=q.device)
    behind = positions[:, None] - positions
    scores = _scores(q, k).masked_fill(behind < 0, float("-inf"))
    return scores.masked_fill(behind % 3 == 2, torch.finfo(q.dtype).min).softmax(-1) @ v


@_spelling(take(*qkv(), integers(B, S, high=3)))
def packed_documents(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """Keys of other documents are hidden; the documents are an input."""
    keep = (documents[:, None, :, None] == documents[:, None, None, :]).tril()
    return _scores(q, k).masked_fill(~keep, float("-inf")).softmax(-1) @ v


@_padded(equals=_padding_reference)
def padding_filled(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    """A (B, S) bool input hides padded keys."""
    return _scores(q, k).masked_fill(~kept[:, None, None, :], float("-inf")).softmax(-1) @ v


@_padded(equals=_padding_reference)
def padding_extended(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    """(1 - mask) * lowest as a [B, 1, 1, S] sum."""
    extended = kept[:, None, None, :].to(q.dtype)
    return (_scores(q, k) + (1.0 - extended) * torch.finfo(q.dtype).min).softmax(-1) @ v


@_spelling(take(*qkv(), fixed(lambda: (~kept_keys()).float()[:, None, None] * -1e4)))
def padding_bias_input(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """An additive [B, 1, 1, S] mask arrives as an input."""
    return F.softmax(_scores(q, k) + mask, dim=-1) @ v


@_padded()
def padding_and_causal(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    """Right padding joined with the triangle, so that the first key is always kept."""
    keep = kept[:, None, None, :] & ~_upper(q, k)
    bias = torch.zeros(keep.shape, dtype=q.dtype, device=q.device)
    bias = bias.masked_fill(keep.logical_not(), torch.finfo(q.dtype).min)
    return (_scores(q, k) + bias).softmax(-1) @ v


@_padded()
def single_precision_mask(q: Tensor, k: Tensor, v: Tensor, kept: Tensor) -> Tensor:
    """An fp32 mask silently promotes lower scores; the result is cast back."""
    mask = torch.where(kept, 0.0, -1e5)[:, None, None].to(torch.float32)
    return (_scores(q, k) + mask).softmax(-1).to(v.dtype) @ v


@_spelling(take(*qkv(batch=B * 5, sq=9, sk=9), fixed(lambda: _window_mask())))
def shifted_windows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Window masks are added in a 5-D view of the scores, twice."""
    scores = _scores(q, k)
    folded, heads, n, _ = scores.shape
    scores = scores.view(folded // 5, 5, heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
    scores = scores + mask.unsqueeze(1).unsqueeze(0)
    return scores.view(-1, heads, n, n).softmax(-1) @ v


def _window_mask() -> Tensor:
    group = torch.arange(9) * torch.arange(1, 6)[:, None] // 9
    return torch.where(group[:, :, None] == group[:, None, :], 0.0, -100.0)


@_spelling(take(*qkv(sq=1, sk=SK), integers(1, high=SK)))
def decode_static_mask(q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> Tensor:
    """One query over a whole cache; keys past a given position are hidden."""
    keep = torch.arange(k.shape[-2], device=q.device) <= position
    return _scores(q, k).masked_fill(~keep, float("-inf")).softmax(-1) @ v


@_spelling(take(*qkv(heads=H, kv=H)), attentions=2)
def one_mask_two_layers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two layers share the tensor that hides the future."""
    mask = torch.full((S, S), torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu(1)
    x = (_scores(q, k) + mask).softmax(-1) @ v
    return (_scores(x, k) + mask).softmax(-1) @ v
