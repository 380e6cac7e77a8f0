"""Rotary embeddings without a norm, as people write them.

Each takes x, of (batch, rows, features), a weight and a bias. There are two heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .forms import Form
from .forms_pairs import WIDTH, angles, heads, matrices, rotate_half, tables

FORMS: list[tuple[Form, int]] = []
"""With how many tensors are rotated."""
LOOKALIKES: list[tuple[Form, str]] = []
"""With a part of the reason that is told, or nothing where nothing is claimed to be near."""
WIDTHS: list[tuple[Form, int]] = []
"""What finds pairs in rows of any width, with how many tensors are rotated."""


def form(count: int) -> Callable[[Form], Form]:
    def add(fn: Form) -> Form:
        FORMS.append((fn, count))
        return fn

    return add


def lookalike(reason: str) -> Callable[[Form], Form]:
    def add(fn: Form) -> Form:
        LOOKALIKES.append((fn, reason))
        return fn

    return add


@form(2)
def llama(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    q, k = (heads(t).transpose(1, 2) for t in (x * w, x * b))
    cos, sin = (t[None].unsqueeze(1) for t in tables(x))
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


@form(1)
def gptj(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w)
    cos, sin = (t[None, :, None] for t in tables(x, near=True))
    rotated = torch.stack((-q[:, :, :, 1::2], q[:, :, :, ::2]), dim=-1).flatten(-2)
    return (q * cos) + (rotated * sin)


@form(1)
def flux(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = torch.cat([heads(x * w), heads(x * b)], 1)
    cos, sin = (t.float().repeat(2, 1)[None, :, None] for t in tables(x, near=True))
    real, imaginary = q.reshape(*q.shape[:-1], -1, 2).unbind(-1)
    rotated = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (q.float() * cos + rotated.float() * sin).to(q.dtype)


@form(2)
def llama4(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    turns = torch.polar(torch.ones_like(angles(x)), angles(x))[None]
    q, k = heads(x * w), heads(x * b)
    wide = [torch.view_as_complex(t.float().reshape(*t.shape[:-1], -1, 2)) for t in (q, k)]
    q, k = (torch.view_as_real(t * turns[:, :, None]).flatten(3).type_as(x) for t in wide)
    return q, k


@form(1)
def gpt_oss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w).transpose(1, 2)
    cos, sin = (t.to(x.dtype) for t in (angles(x).cos(), angles(x).sin()))
    first, second = torch.chunk(q, 2, dim=-1)
    return torch.cat((cos * first - sin * second, cos * second + sin * first), dim=-1)


@form(1)
def deepseek(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Neighbours are brought together by a view, and halves rotated."""
    q = heads(x * w).transpose(1, 2)
    n, h, t, d = q.shape
    q = q.view(n, h, t, d // 2, 2).transpose(4, 3).reshape(n, h, t, d)
    cos, sin = tables(x)
    return q * cos + rotate_half(q) * sin


@form(1)
def neox(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A quarter of a head is rotated, the rest is put behind it."""
    q = heads(x * w)
    cos, sin = (t[:, None, :2] for t in tables(x))
    turned, rest = q[..., :2], q[..., 2:]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), -1)


@form(1)
def half_of_it(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w)
    cos, sin = (t[:, None, : WIDTH // 2] for t in tables(x))
    turned, rest = q[..., : WIDTH // 2], q[..., WIDTH // 2 :]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), -1)


@form(2)
def wan(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = (t[None, :, None] for t in tables(x, near=True))

    def rotated(q: Tensor) -> Tensor:
        first, second = q.unflatten(-1, (-1, 2)).unbind(-1)
        out = torch.empty_like(q)
        out[..., 0::2] = first * cos[..., 0::2] - second * sin[..., 1::2]
        out[..., 1::2] = first * sin[..., 1::2] + second * cos[..., 0::2]
        return out.type_as(q)

    return rotated(heads(x * w)), rotated(heads(x * b))


@form(1)
def by_the_batch(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w)
    places = torch.arange(x.shape[1])[None] * torch.tensor([[1], [2]]) % x.shape[1]
    cos, sin = (t[places][:, :, None] for t in tables(x))
    return q * cos + rotate_half(q) * sin


@form(1)
def scaled(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """YaRN: cosines have a factor, which is learned here; so no length is kept."""
    q = heads(x * w).transpose(1, 2)
    cos, sin = (t * b[:WIDTH] * 1.2 for t in tables(x))
    return (q * cos + rotate_half(q) * sin) * WIDTH**-0.5


@form(2)
def hidream(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    """By matrices."""
    turns = matrices(x)[None, :, None]

    def turned(q: Tensor) -> Tensor:
        pairs = q.float().reshape(*q.shape[:-1], -1, 1, 2)
        both = turns[..., 0] * pairs[..., 0] + turns[..., 1] * pairs[..., 1]
        return both.reshape(*q.shape).type_as(q)

    return [turned(heads(x * t)) for t in (w, b)]


@form(1)
def neighbours_by_matrices_become_halves(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = heads(x * w)
    turns, pairs = matrices(x)[:, None].to(x.dtype), q.unflatten(-1, (-1, 1, 2))
    turned = pairs[..., 1] * turns[..., 1] + pairs[..., 0] * turns[..., 0]
    return turned.transpose(-1, -2).flatten(-2)


@form(1)
def both_at_once(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Queries and keys are one tensor until they are rotated."""
    q = torch.cat([heads(x * w), heads(x * b)], 2)
    cos, sin = (t[None, :, None] for t in tables(x))
    return (q * cos + rotate_half(q) * sin).chunk(2, 2)


def exchanged(x: Tensor) -> Tensor:
    """Of neighbours, as diffusers does it."""
    real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([-imaginary, real], dim=-1).flatten(3)


@form(1)
def cogvideox(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Rows behind those of the text are replaced. What was rotated is not there for the backward,
    which reads cosines and sines alone."""
    q = heads(x * w).transpose(1, 2).contiguous()
    cos, sin = (t[None, None, 3:] for t in tables(x, near=True))
    part = q[:, :, 3:]
    q[:, :, 3:] = (part.float() * cos + exchanged(part).float() * sin).to(x.dtype)
    return q


@form(1)
def features_first(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Sana's: what is rotated is a view whose last dimension is another's."""
    q = heads(x * w).permute(0, 2, 3, 1).contiguous() * 1.5
    turns = torch.polar(torch.ones_like(angles(x)), angles(x))
    z = torch.view_as_complex(q.permute(0, 1, 3, 2).contiguous().float().unflatten(3, (-1, 2)))
    return torch.view_as_real(z * turns).flatten(3, 4).permute(0, 1, 3, 2).type_as(x)


@form(1)
def swapped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """No rotation, but of pairs all the same."""
    first, second = heads(x * w).chunk(2, -1)
    return torch.cat((second.sigmoid() * first, first + b[: WIDTH // 2]), -1)


@form(1)
def quarters(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Halves that changed places are a tensor of their own, of which neighbours are rotated."""
    q = heads(x * w)
    halves = rotate_half(q)
    return q * 0.6 + torch.stack((-halves[..., 1::2], halves[..., ::2]), -1).flatten(-2) * 0.8


# -- others


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
    first, second = q.chunk(2, 2)
    return q * 0.6 + torch.cat((-second, first), 2) * 0.8


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


# -- rows whose width is not known while compiling


def width(count: int) -> Callable[[Form], Form]:
    def add(fn: Form) -> Form:
        WIDTHS.append((fn, count))
        return fn

    return add


def _doubled(x: Tensor, b: Tensor) -> Tensor:
    """Twice as wide as x: so there are halves, however wide that is."""
    return torch.cat((x * b.sum(), x.flip(-1)), -1)


@width(1)
def wide_chunks(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    first, second = _doubled(x, b).chunk(2, -1)
    return torch.cat((first * 0.6 - second * 0.8, second * 0.6 + first * 0.8), -1)


@width(1)
def wide_halves(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = _doubled(x, b)
    return q * 0.6 + rotate_half(q) * 0.8


@width(1)
def wide_halves_from_the_end(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q, half = _doubled(x, b), x.shape[-1]
    return q * 0.6 + torch.cat((-q[..., -half:], q[..., :-half]), -1) * 0.8


@width(1)
def wide_neighbours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = _doubled(x, b)
    first, second = q[..., ::2], q[..., 1::2]
    out = torch.empty_like(q)
    out[..., ::2] = first * 0.6 - second * 0.8
    out[..., 1::2] = second * 0.6 + first * 0.8
    return out


@width(1)
def wide_halves_written(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q, half = _doubled(x, b), x.shape[-1]
    first, second = q.split(half, -1)
    out = torch.empty_like(q)
    out[..., :half] = first * 0.6 - second * 0.8
    out[..., half:] = second * 0.6 + first * 0.8
    return out


@width(0)
def wide_halves_but_one_written(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q, half = _doubled(x, b), x.shape[-1]
    first, second = q.split(half, -1)
    out = torch.zeros_like(q)
    out[..., :half] = first * 0.6 - second * 0.8
    out[..., half : 2 * half - 1] = (second * 0.6 + first * 0.8)[..., 1:]
    return out


@width(0)
def wide_thirds(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = torch.cat((_doubled(x, b), x), -1)
    first, second = q[..., : x.shape[-1]], q[..., x.shape[-1] : -x.shape[-1]]
    return torch.cat((first * 0.6 - second * 0.8, second * 0.6 + first * 0.8), -1)
