"""Spellings by contraction form, operand layout, projection and position encoding."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import DV, KV, SK, B, D, E, H, S, Spelling, normal, qkv, spelling, take

FORMS: list[Spelling] = []
_spelling = partial(spelling, FORMS)
_plain = partial(_spelling, take(*qkv(dv=DV)), equals=F.scaled_dot_product_attention)
_cross = partial(_spelling, take(*qkv(sk=SK, dv=DV)), equals=F.scaled_dot_product_attention)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The textbook spelling, for cases that are about something else."""
    return ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


@_plain()
def matmul_operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The `@` operator and a division by the root of the depth."""
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), dim=-1) @ v


@_cross()
def matmul_function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch.matmul, `.mT` and a multiplication, with Sq != Sk."""
    scores = torch.matmul(q, k.mT).mul(1 / math.sqrt(D))
    return torch.matmul(F.softmax(scores, dim=-1), v)


@_cross()
def matmul_method_permuted_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Tensor.matmul with keys transposed by a permutation."""
    scores = q.matmul(k.permute(0, 1, 3, 2)) * D**-0.5
    return scores.softmax(3).matmul(v)


@_cross()
def matmul_swapaxes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Keys transposed by swapaxes with positive axes."""
    return F.softmax((q @ k.swapaxes(2, 3)) / D**0.5, dim=3) @ v


@_plain()
def bmm_folded_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Batch and heads folded into one axis for torch.bmm."""
    b, h, s, d = q.shape
    scores = torch.bmm(q.reshape(b * h, s, d), k.reshape(b * h, s, d).transpose(1, 2)) * d**-0.5
    out = torch.bmm(scores.softmax(dim=-1), v.reshape(b * h, s, -1))
    return out.view(b, h, s, -1)


@_cross()
def baddbmm_unused_input(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """baddbmm over an uninitialised input with beta 0 and the scale as alpha."""
    q3, k3, v3 = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    blank = torch.empty(q3.shape[0], q3.shape[1], k3.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(blank, q3, k3.transpose(-1, -2), beta=0, alpha=D**-0.5)
    return torch.bmm(scores.softmax(dim=-1), v3).unflatten(0, q.shape[:2])


@_cross()
def einsum_heads_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Both contractions as einsum in (B, H, S, D)."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * D**-0.5
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


@_cross()
def einsum_odd_letters(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Letters in unusual order, keys named first, spaces in the equation."""
    scores = torch.einsum("z y x w, z y v w -> z y v x", k, q) * D**-0.5
    return torch.einsum("zyxe,zyvx->zyve", v, scores.softmax(-1))


@_cross()
def einsum_ellipsis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Leading axes as an ellipsis."""
    scores = torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(D)
    return torch.einsum("...qk,...kd->...qd", scores.softmax(dim=-1), v)


@_spelling(take(normal(S, D, std=1.5), normal(SK, D, std=1.5), normal(SK, DV)))
def einsum_implicit_output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No arrow: the output axes are the unrepeated letters in alphabetical order."""
    scores = torch.einsum("qd,kd", q, k) * D**-0.5
    return torch.einsum("kq,kd", scores.softmax(0), v).t()


@_cross()
def einsum_sublists(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """einsum called with integer sublists."""
    scores = torch.einsum(q, [0, 1, 2, 4], k, [0, 1, 3, 4], [0, 1, 2, 3]) * D**-0.5
    return torch.einsum(scores.softmax(-1), [0, 1, 2, 3], v, [0, 1, 3, 5], [0, 1, 2, 5])


@_spelling(take(normal(B, S, H, D, std=1.5), normal(B, SK, H, D, std=1.5), normal(B, SK, H, DV)))
def einsum_sequence_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, S, H, D) operands and result."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * D**-0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


@_spelling(take(normal(B, S, H, D, std=1.5), normal(B, SK, H, D, std=1.5), normal(B, SK, H, DV)))
def einsum_heads_last_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores kept as (B, Q, K, H), so the softmax runs over axis 2."""
    scores = torch.einsum("bqhd,bkhd->bqkh", q, k) * D**-0.5
    return torch.einsum("bqkh,bkhd->bqhd", scores.softmax(dim=2), v)


@_spelling(take(normal(S, B, H, D, std=1.5), normal(SK, B, H, D, std=1.5), normal(SK, B, H, DV)))
def einsum_time_major(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(S, B, H, D) operands with the keys on the first score axis."""
    scores = torch.einsum("ibnd,jbnd->jibn", q, k) * D**-0.5
    return torch.einsum("jibn,jbnd->ibnd", scores.softmax(dim=0), v).flatten(2)


@_cross()
def transposed_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The second contraction as v^T p^T."""
    p = ((q @ k.mT) * D**-0.5).softmax(dim=-1)
    return (v.transpose(-2, -1) @ p.transpose(-2, -1)).transpose(-2, -1)


@_cross()
def transposed_throughout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores as k q^T, softmax over their first matrix axis, output as v^T p."""
    p = ((k @ q.mT) * D**-0.5).softmax(dim=-2)
    return (v.mT @ p).mT


@_cross()
def scores_transposed_before_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores as k q^T, turned round before the softmax."""
    return ((k @ q.mT).transpose(2, 3) * D**-0.5).softmax(dim=-1) @ v


@_cross()
def needless_copies(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """contiguous, clone, view, identity casts and `+ 0` between every step."""
    scores = (q.contiguous() @ k.mT.contiguous()).clone() * D**-0.5
    p = scores.view(scores.shape).to(q.dtype).contiguous().softmax(-1).clone() + 0
    return torch.matmul(p.type_as(v) * 1.0, v.contiguous()).contiguous()


@_cross()
def unsqueezed_and_squeezed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Axes of size one come and go between the steps."""
    scores = (q.unsqueeze(2) @ k.unsqueeze(2).mT) * D**-0.5
    p = scores.squeeze(2)[:, :, None].softmax(-1)
    return (p @ v[:, :, None]).squeeze(2)


@_spelling(take(normal(B, S, D, std=1.5), normal(B, SK, D, std=1.5), normal(B, SK, DV)))
def single_head_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No head axis at all."""
    return torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(D), dim=2), v)


@_spelling(take(normal(S, D, std=1.5), normal(SK, D, std=1.5), normal(SK, DV)))
def unbatched_mm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Neither batch nor heads: torch.mm and `.t()`."""
    return torch.mm(torch.softmax(torch.mm(q, k.t()) * D**-0.5, dim=1), v)


@_spelling(take(normal(B, H, D, std=1.5), normal(B, H, SK, D, std=1.5), normal(B, H, SK, DV)))
def single_query_matvec(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query without an axis of its own, as in pooling heads."""
    scores = (k @ q.unsqueeze(-1)).squeeze(-1) * D**-0.5
    return (scores.softmax(-1).unsqueeze(-2) @ v).squeeze(-2)


@_spelling(take(normal(B, 5, H, 9, D, std=1.5), normal(B, 5, H, 9, D, std=1.5),
                normal(B, 5, H, 9, DV)), equals=F.scaled_dot_product_attention)  # fmt: skip
def five_dimensional_windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Windows as a batch axis of their own: (B, W, H, T, D)."""
    return ((q * D**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


@_spelling(take(normal(B, 5, 7, D, std=1.5), normal(B, 5, 7, D, std=1.5), normal(B, 5, 7, DV)))
def axial_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention down the columns of a picture, the other spatial axis being a batch."""
    scores = torch.einsum("brcd,bscd->bcrs", q, k) * D**-0.5
    return torch.einsum("bcrs,bscd->brcd", scores.softmax(-1), v)


@_spelling(take(normal(B, H, 5, 7, D, std=1.5), normal(B, H, 5, 7, D, std=1.5),
                normal(B, H, 5, 7, DV)))  # fmt: skip
def two_dimensional_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries and keys over two spatial axes, flattened for the softmax only."""
    scores = torch.einsum("bhxyd,bhuvd->bhxyuv", q, k) * D**-0.5
    p = scores.flatten(-2).softmax(-1).unflatten(-1, (5, 7))
    return torch.einsum("bhxyuv,bhuvd->bhxyd", p, v)


@_spelling(take(normal(B, D, 5, 7), normal(3 * D, D, 1, 1, std=0.5)))
def picture_block(x: Tensor, weight: Tensor) -> Tensor:
    """1x1 convolutions, channels-first reshapes, and values on the left of the product."""
    b, c, h, w = x.shape
    q, k, v = F.conv2d(x, weight).chunk(3, dim=1)
    scores = torch.bmm(q.reshape(b, c, h * w).permute(0, 2, 1), k.reshape(b, c, h * w))
    p = torch.softmax(scores * (c**-0.5), dim=2).permute(0, 2, 1)
    return x + torch.bmm(v.reshape(b, c, h * w), p).reshape(b, c, h, w)


_projected = partial(_spelling, take(normal(B, S, E), normal(3 * E, E, std=0.15)))


@_projected()
def fused_projection_unbind(x: Tensor, weight: Tensor) -> Tensor:
    """One linear layer, a 5-D permutation and unbind."""
    b, s, _ = x.shape
    q, k, v = F.linear(x, weight).reshape(b, s, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return attend(q, k, v).transpose(1, 2).reshape(b, s, E)


@_projected()
def fused_projection_chunk(x: Tensor, weight: Tensor) -> Tensor:
    """One linear layer and chunk, heads viewed afterwards."""
    b, s, _ = x.shape
    q, k, v = (t.view(b, s, H, D).transpose(1, 2) for t in F.linear(x, weight).chunk(3, dim=-1))
    return attend(q, k, v).transpose(1, 2).contiguous().view(b, s, E)


@_projected()
def fused_projection_split(x: Tensor, weight: Tensor) -> Tensor:
    """One linear layer and split by size, output projected again."""
    b, s, _ = x.shape
    q, k, v = (x @ weight.t()).split(E, dim=2)
    q, k, v = (t.reshape(b, s, H, D).permute(0, 2, 1, 3) for t in (q, k, v))
    return attend(q, k, v).permute(0, 2, 1, 3).flatten(2) @ weight[:E]


@_projected()
def fused_projection_select(x: Tensor, weight: Tensor) -> Tensor:
    """Heads interleaved with q, k, v inside each head, taken by integer index."""
    b, s, _ = x.shape
    mixed = F.linear(x, weight).view(b, s, H, 3, D)
    q, k, v = (mixed[..., i, :].transpose(1, 2) for i in range(3))
    return attend(q, k, v).transpose(1, 2).reshape(b, s, E)


@_projected()
def gated_output_heads(x: Tensor, weight: Tensor) -> Tensor:
    """A sigmoid gate for each head multiplies the output."""
    b, s, _ = x.shape
    q, k, v = F.linear(x, weight).view(b, s, 3, H, D).permute(2, 0, 3, 1, 4)
    gate = torch.sigmoid(x[..., :H]).transpose(1, 2).unsqueeze(-1)
    return (attend(q, k, v) * gate).transpose(1, 2).reshape(b, s, E)


@_spelling(take(normal(B, S, H, D), normal(B, SK, H, D), normal(B, S, H, DV),
                normal(B, SK, H, DV), normal(D), normal(D)))  # fmt: skip
def joint_streams(q: Tensor, k: Tensor, v1: Tensor, v2: Tensor, wq: Tensor, wk: Tensor) -> Tensor:
    """Two streams joined along the sequence, queries and keys normalised by RMS."""
    both = torch.cat([q, k], dim=1)
    queries = F.rms_norm(both, (D,), wq, 1e-6).transpose(1, 2)
    keys = F.rms_norm(both, (D,), wk, 1e-6).transpose(1, 2)
    out = attend(queries, keys, torch.cat([v1, v2], dim=1).transpose(1, 2))
    return out.transpose(1, 2)[:, : q.shape[1]]


def _angles(x: Tensor, width: int) -> Tensor:
    positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    rates = 100.0 ** (-torch.arange(width, device=x.device, dtype=torch.float32) / width)
    return positions[:, None] * rates


def _rotate_halves(x: Tensor) -> Tensor:
    angles = _angles(x, D // 2).repeat(1, 2)
    low, high = x.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype)


def _rotate_pairs(x: Tensor) -> Tensor:
    angles = _angles(x, D // 2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    parts = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(parts, dim=-1).flatten(-2).type_as(x)


def _rotate_complex(x: Tensor) -> Tensor:
    turns = torch.polar(torch.ones_like(_angles(x, D // 2)), _angles(x, D // 2))
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


def _rotate_strided(x: Tensor) -> Tensor:
    angles = _angles(x, D // 2)
    out = torch.empty_like(x)
    out[..., 0::2] = (x[..., 0::2] * angles.cos() - x[..., 1::2] * angles.sin()).type_as(x)
    out[..., 1::2] = (x[..., 0::2] * angles.sin() + x[..., 1::2] * angles.cos()).type_as(x)
    return out


@_plain(equals=None)
def rotary_halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rotary embedding by halves (neg, cat) before the first contraction."""
    return attend(_rotate_halves(q), _rotate_halves(k), v)


@_plain(equals=None)
def rotary_pairs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs (unbind, stack, flatten) in fp32."""
    return attend(_rotate_pairs(q), _rotate_pairs(k), v)


@_plain(equals=None)
def rotary_complex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rotary embedding through complex numbers."""
    return attend(_rotate_complex(q), _rotate_complex(k), v)


@_plain(equals=None)
def rotary_strided_assignment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rotary embedding written into an empty tensor by strided assignment."""
    return attend(_rotate_strided(q), _rotate_strided(k), v)


@_spelling(take(*qkv(kv=KV, sk=S)), attentions=2)
def two_in_a_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The second attention takes the first one's output as its queries."""
    k, v = k.repeat_interleave(H // KV, dim=1), v.repeat_interleave(H // KV, dim=1)
    return attend(attend(q, k, v), k, v)
