"""Rotary embeddings after a norm, as people write them.

Each takes x, of (batch, rows, features), a weight and a bias. There are two heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import FEATURES, Form

WIDTH = FEATURES // 2
"""Of a head."""
ROTATIONS: list[Form] = []
OTHERS: list[Form] = []
"""What looks like a rotation, and is left as it is: the norm alone is a region."""


def rotation(form: Form) -> Form:
    ROTATIONS.append(form)
    return form


def other(form: Form) -> Form:
    OTHERS.append(form)
    return form


def angles(x: Tensor) -> Tensor:
    """Of (rows, half of a head)."""
    powers = torch.arange(0, WIDTH, 2, dtype=torch.float32) / WIDTH
    return torch.arange(x.shape[1])[:, None] / 10**powers


def tables(x: Tensor, *, near: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and sines of (rows, head), each twice: for halves, or for neighbours."""
    found = angles(x)
    found = found.repeat_interleave(2, 1) if near else torch.cat((found, found), -1)
    return found.cos().to(x.dtype), found.sin().to(x.dtype)


def matrices(x: Tensor) -> Tensor:
    """Of (rows, half of a head, 2, 2)."""
    found = angles(x)
    turns = torch.stack([found.cos(), -found.sin(), found.sin(), found.cos()], -1)
    return turns.unflatten(-1, (2, 2))


def rotate_half(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], 2, WIDTH)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    """Llama's."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


@rotation
def qwen3(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = rms(heads(x), w[:WIDTH]).transpose(1, 2)
    cos, sin = (t[None, None] for t in tables(x))
    return q * cos + rotate_half(q) * sin


@rotation
def gemma3(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x).transpose(1, 2)
    wide = q.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    q = (wide * (1.0 + w[:WIDTH].float())).type_as(q)
    cos, sin = (t[None].unsqueeze(1) for t in tables(x))
    return (q * cos) + (rotate_half(q) * sin)


@rotation
def flux(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Neighbours, in fp32."""
    q = F.rms_norm(heads(x), (WIDTH,), w[:WIDTH])
    cos, sin = (t.float()[None, :, None] for t in tables(x, near=True))
    real, imaginary = q.reshape(*q.shape[:-1], -1, 2).unbind(-1)
    rotated = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (q.float() * cos + rotated.float() * sin).to(q.dtype)


@rotation
def flux_of_its_authors(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """By matrices, of which each column is read with one member."""
    q = F.rms_norm(heads(x), (WIDTH,), w[:WIDTH])
    turns = matrices(x)[None, :, None]
    pairs = q.float().reshape(*q.shape[:-1], -1, 1, 2)
    turned = turns[..., 0] * pairs[..., 0] + turns[..., 1] * pairs[..., 1]
    return turned.reshape(*q.shape).type_as(q)


@rotation
def cogview4(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Halves by a dimension of two; the norm has a mean."""
    q = F.layer_norm(heads(x), (WIDTH,), w[:WIDTH], b[:WIDTH]).transpose(1, 2)
    cos, sin = (t[None, None] for t in tables(x))
    real, imaginary = q.reshape(*q.shape[:-1], 2, -1).unbind(-2)
    rotated = torch.cat([-imaginary, real], dim=-1)
    return (q.float() * cos + rotated.float() * sin).to(q.dtype)


@rotation
def lumina(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """By complex numbers."""
    q = F.rms_norm(heads(x), (WIDTH,), w[:WIDTH])
    turns = torch.polar(torch.ones_like(angles(x)), angles(x))
    z = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real(z * turns[:, None]).flatten(3).type_as(q)


@rotation
def llama4(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """By complex numbers, of a norm without a weight."""
    q = heads(x)
    turns = torch.view_as_complex(torch.stack([angles(x).cos(), angles(x).sin()], -1))[None]
    z = torch.view_as_complex(F.rms_norm(q.float(), (WIDTH,)).reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real(z * turns[:, :, None, :]).flatten(3).type_as(q) * b[:WIDTH]


@rotation
def gpt_oss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Cosines for half of a head."""
    q = rms(heads(x), w[:WIDTH]).transpose(1, 2)
    cos, sin = (t.to(x.dtype) for t in (angles(x).cos(), angles(x).sin()))
    first, second = torch.chunk(q, 2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@rotation
def deepseek(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Neighbours become halves."""
    q = rms(heads(x), w[:WIDTH]).transpose(1, 2)
    cos, sin = (t[:, : WIDTH // 2] for t in tables(x))
    first, second = q[..., 0::2], q[..., 1::2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@rotation
def gptj(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = rms(heads(x), w[:WIDTH])
    cos, sin = (t[None, :, None] for t in tables(x, near=True))
    rotated = torch.stack((-q[:, :, :, 1::2], q[:, :, :, ::2]), dim=-1).flatten(-2)
    return q * cos + rotated * sin


@rotation
def kandinsky(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """By matrices, with a sum over what is read."""
    q = F.rms_norm(heads(x).float(), (WIDTH,), w[:WIDTH].float()).type_as(x)
    pairs = q.reshape(*q.shape[:-1], -1, 1, 2).to(torch.float32)
    return (matrices(x)[:, None] * pairs).sum(dim=-1).reshape(*q.shape).type_as(x)


@rotation
def ltx2(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Halves are written to in place; the norm is of all heads."""
    q = heads(F.rms_norm(x, (FEATURES,), w)).swapaxes(1, 2)
    pairs = q.reshape(*q.shape[:-1], 2, WIDTH // 2).float()
    first, second = pairs[..., :1, :], pairs[..., 1:, :]
    cos, sin = (t[:, None] for t in (angles(x).cos(), angles(x).sin()))
    out = pairs * cos
    out[..., :1, :].addcmul_(-sin, second)
    out[..., 1:, :].addcmul_(sin, first)
    return out.reshape(*out.shape[:-2], -1).swapaxes(1, 2).flatten(2).to(x.dtype)


@rotation
def interleaved(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Wan's, with a stack in place of its writes."""
    q = F.rms_norm(x, (FEATURES,), w).unflatten(2, (2, -1))
    first, second = q.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = (t[None, :, None] for t in (angles(x).cos(), angles(x).sin()))
    rotated = torch.stack((first * cos - second * sin, first * sin + second * cos), -1)
    return rotated.flatten(-2).type_as(q)


@rotation
def wan(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Members are written to where they belong."""
    q = F.rms_norm(x, (FEATURES,), w).unflatten(2, (2, -1))
    first, second = q.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = (t[None, :, None] for t in (angles(x).cos(), angles(x).sin()))
    out = torch.empty_like(q)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out.type_as(q)


@rotation
def olmo2(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The norm is of all heads together."""
    q = rms(x, w).view(*x.shape[:2], 2, WIDTH).transpose(1, 2)
    cos, sin = (t.float()[None, None] for t in tables(x))
    return ((q.float() * cos) + (rotate_half(q).float() * sin)).to(q.dtype)


@rotation
def split_and_narrowed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = F.normalize(heads(x), dim=-1) * w[:WIDTH]
    cos, sin = (t[None, :, None] for t in tables(x))
    first, _ = q.split(WIDTH // 2, -1)
    second = q.narrow(-1, WIDTH // 2, WIDTH // 2)
    return q * cos + torch.cat((-second, first), -1) * sin


@rotation
def gathered(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Cosines for each of the batch."""
    q = rms(heads(x), w[:WIDTH]).transpose(1, 2)
    places = torch.arange(x.shape[1]).flip(0)[None] * torch.tensor([[1], [0]])
    cos, sin = (t[places].unsqueeze(1) for t in tables(x))
    return q * cos + rotate_half(q) * sin


@rotation
def learned(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Cosines and sines have gradients, and are not the same for both of a pair."""
    q = rms(heads(x), w[:WIDTH]).transpose(1, 2)
    cos, sin = (w * b)[:WIDTH], (w + b)[None, :WIDTH]
    return q * cos + rotate_half(q) * sin * 0.5


@rotation
def beside_itself(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    q = rms(heads(x), w[:WIDTH])
    cos, sin = (t[None, :, None] for t in tables(x))
    return q * cos + rotate_half(q) * sin, q


@rotation
def after_a_residual(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    total = heads(x) + b[:WIDTH]
    q = rms(total, w[:WIDTH])
    cos, sin = (t[None, :, None] for t in tables(x))
    q = q * cos + rotate_half(q) * sin
    return q, total * 2


# -- others


def normed(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(heads(x), (WIDTH,), w[:WIDTH])


@other
def gated_half(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Of each pair one element is left."""
    first, second = normed(x, w).chunk(2, -1)
    return F.silu(first) * second


@other
def of_different_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = normed(x, w)
    first, second = q.chunk(2, 2)
    return q * 0.6 + torch.cat((-second, first), 2) * 0.8


@other
def thirds(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = F.rms_norm(x[..., :12], (12,), w[:12])
    first, second, third = q.chunk(3, -1)
    return q * 0.6 + torch.cat((-second, third, first), -1) * 0.8


@other
def halves_of_neighbours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Taken apart in two ways, four elements make a result."""
    q = normed(x, w)
    near = torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2)
    return near * 0.6 + rotate_half(q) * 0.8


@other
def turned_twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """First halves, then neighbours."""
    q = normed(x, w)
    q = q * 0.6 + rotate_half(q) * 0.8
    return q * 0.8 + torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2) * 0.6


@other
def member_escapes(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    q = normed(x, w)
    first, second = q.chunk(2, -1)
    return q * 0.6 + torch.cat((-second, first), -1) * 0.8, first.flip(-1)


@other
def unequal_parts(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = normed(x, w)
    return q * 0.6 + torch.cat((-q[..., 3:], q[..., :3]), -1) * 0.8


@other
def part_of_another(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q, rest = normed(x, w), heads(x)
    return q * 0.6 + torch.cat((-q[..., WIDTH // 2 :], rest[..., : WIDTH // 2]), -1) * 0.8


@other
def conjugated(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = normed(x, w).float()
    z = torch.view_as_complex(q.reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real((z * z.conj()).resolve_conj()).flatten(-2)


@other
def projected_apart(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Halves that are read by two products."""
    first, second = normed(x, w).chunk(2, -1)
    return first @ w[: WIDTH // 2, None] + second @ b[: WIDTH // 2, None]
