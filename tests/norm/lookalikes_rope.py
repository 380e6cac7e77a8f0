"""What looks like a rotary embedding without a norm, and is left as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .forms import Form
from .forms_pairs import WIDTH, heads, matrices, rotate_half, tables
from .forms_rope import exchanged

LOOKALIKES: list[tuple[Form, str]] = []
"""With a part of the reason that is told, or nothing where nothing is claimed to be near."""


def lookalike(reason: str) -> Callable[[Form], Form]:
    def add(fn: Form) -> Form:
        LOOKALIKES.append((fn, reason))
        return fn

    return add


@lookalike("")
def gated(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """SwiGLU."""
    first, second = (x * w).chunk(2, -1)
    return torch.nn.functional.silu(first) * second


@lookalike("")
def halves_of_two(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q, k = heads(x * w), heads(x * b)
    return torch.cat((-q[..., WIDTH // 2 :], k[..., : WIDTH // 2]), -1) * 0.8


@lookalike("")
def thirds(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = (x * w)[..., :12]
    first, second, third = q.chunk(3, -1)
    return q * 0.6 + torch.cat((-second, third, first), -1) * 0.8


@lookalike("")
def unequal(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w)
    return q * 0.6 + torch.cat((-q[..., 3:], q[..., :3]), -1) * 0.8


@lookalike("")
def by_matrices_of_three_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Of two numbers three are made."""
    pairs = heads(x * w).unflatten(-1, (-1, 1, 2))
    turns = torch.cat([matrices(x), matrices(x)[:, :, :1]], 2)[:, None].to(x.dtype)
    return turns[..., 0] * pairs[..., 0] + turns[..., 1] * pairs[..., 1]


@lookalike("")
def matrices_of_one_member(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    pairs, turns = heads(x * w).unflatten(-1, (-1, 1, 2)), matrices(x)[:, None].to(x.dtype)
    return (turns[..., 0] * pairs[..., 0]).flatten(-2)


@lookalike("beside another")
def matrices_beside_a_member(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    pairs, turns = heads(x * w).unflatten(-1, (-1, 1, 2)), matrices(x)[:, None].to(x.dtype)
    first = pairs[..., 0]
    turned = turns[..., 0] * first + turns[..., 1] * pairs[..., 1]
    return turned.flatten(-2), first.cumsum(1)


@lookalike("different rows")
def of_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w)
    first, second = q.chunk(2, 0)
    return q * 0.6 + torch.cat((-second, first), 0) * 0.8


@lookalike("no members of pairs")
def two_ways(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w)
    near = torch.stack((-q[..., 1::2], q[..., ::2]), -1).flatten(-2)
    return near * 0.6 + rotate_half(q) * 0.8


@lookalike("beside another")
def member_escapes(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    q = heads(x * w)
    first, second = q.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return q * 0.6 + turned * 0.8, first.flip(-1)


@lookalike("float64")
def in_float64(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w).double()
    cos, sin = (t.double()[None, :, None] for t in tables(x))
    return (q * cos + rotate_half(q) * sin).to(x.dtype)


@lookalike("complex numbers that something else")
def squared_length(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w).float()
    z = torch.view_as_complex(q.reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real(z * z.conj()).flatten(-2)


@lookalike("mutated")
def written_between(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w).detach()
    cos, sin = (t[None, :, None] for t in tables(x))
    plain = q * cos * b[:WIDTH]
    q[0] = 1
    return plain + rotate_half(q) * sin


@lookalike("mutated after the region, but kept for the backward")
def learned_angles_of_replaced_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Gradients of cosines read what was rotated."""
    q = heads(x * w).transpose(1, 2).contiguous()
    cos, sin = (t[None, None, 3:] for t in tables(x, near=True))
    part = q[:, :, 3:]
    q[:, :, 3:] = (part * 1.5) * (cos * b[:WIDTH]) + exchanged(part) * sin
    return q


@lookalike("mutated after the region, but kept for the backward")
def angles_of_replaced_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Cosines are made of what is rotated, element by element."""
    q = heads(x * w).transpose(1, 2).contiguous()
    part = q[:, :, 3:]
    angle = part * 1.5
    q[:, :, 3:] = angle * angle.cos() + exchanged(part) * angle.sin()
    return q


@lookalike("")
def one_member_in_place(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Of the other nobody makes anything."""
    pairs = heads(x * w).unflatten(-1, (2, -1))
    out = pairs * 0.6
    out[..., :1, :].addcmul_(pairs[..., 1:, :], pairs[..., 1:, :].cos())
    return out.flatten(-2)


@lookalike("")
def read_before_it_is_whole(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    pairs = heads(x * w).unflatten(-1, (2, -1))
    out = pairs * 0.6
    first, second = out[..., :1, :], out[..., 1:, :]
    first.addcmul_(pairs[..., 1:, :], b[0].detach() * 0.5)
    half = out * 2
    second.addcmul_(pairs[..., :1, :], b[1].detach() * 0.5)
    return out.flatten(-2), half


@lookalike("")
def sums_of_products_of_members(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Of each pair one number is left."""
    pairs = heads(x * w).unflatten(-1, (-1, 2))
    return (pairs * matrices(x)[:, None, :, 0].to(x.dtype)).sum(-1)


@lookalike("")
def written_in_part(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One of each pair is zero."""
    q = heads(x * w)
    out = torch.zeros_like(q)
    out[..., 0::2] = q[..., 1::2] * 2
    return out


@lookalike("")
def written_twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What is written last is there."""
    q = heads(x * w)
    first, second = q.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.zeros_like(q)
    out[..., 0::2] = first * 0.6 - second * 0.8
    out[..., 1::2] = second * 0.6 + first * 0.8
    out[..., 0::2] = second
    return out
