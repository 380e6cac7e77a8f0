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
WIDTHS: list[tuple[Form, int]] = []
"""What finds pairs in rows of any width, with how many tensors are rotated."""


def form(count: int) -> Callable[[Form], Form]:
    def add(fn: Form) -> Form:
        FORMS.append((fn, count))
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
def three_quarters(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Phi-4's: what is turned is no number of equal parts of a head."""
    q = heads(x * w).transpose(1, 2)
    cos, sin = (t[:, :6] for t in tables(x))
    turned, rest = q[..., :6], q[..., 6:]
    return torch.cat([turned * cos + rotate_half(turned) * sin, rest], -1)


@form(1)
def axes_of_an_image(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """DUSt3R's: halves of a head are turned, each by itself."""
    up, along = heads(x * w).transpose(1, 2).chunk(2, -1)
    cos, sin = (t[:, : WIDTH // 2] for t in tables(x))
    up = up * cos + rotate_half(up) * sin
    along = along * sin + rotate_half(along) * cos
    return torch.cat((up, along), -1)


@form(1)
def axes_of_a_video(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """V-JEPA 2's: three quarters are turned, each by itself, and one is kept."""
    q = heads(x * w).transpose(1, 2)
    parts: list[Tensor] = []
    for i in range(3):
        part, (cos, sin) = q[..., 2 * i : 2 * i + 2], (t[:, i : i + 1] for t in tables(x))
        first, second = part.unflatten(-1, (-1, 2)).unbind(-1)
        parts.append(part * cos + torch.stack((-second, first), -1).flatten(-2) * sin)
    return torch.cat([*parts, q[..., 6:]], -1)


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


@form(2)
def kandinsky(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    """By matrices, with a sum over what is read."""
    turns = matrices(x)[None, :, None]

    def turned(q: Tensor) -> Tensor:
        pairs = q.reshape(*q.shape[:-1], -1, 1, 2).to(torch.float32)
        return (turns * pairs).sum(dim=-1).reshape(*q.shape).to(torch.bfloat16).type_as(q)

    return [turned(heads(x * t)) for t in (w, b)]


@form(1)
def learned_matrices(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Columns are read with the other member, and rows added up."""
    turns = (matrices(x)[:, None] * b[:4].float().view(2, 2)).to(x.dtype)
    pairs = heads(x * w).unflatten(-1, (-1, 2, 1))
    return (pairs * turns).sum(-2).flatten(-2)


def split(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """LTX-2's: members are written to in place."""
    pairs = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2).float()
    first, second = pairs[..., :1, :], pairs[..., 1:, :]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    out = pairs * cos
    first_out, second_out = out[..., :1, :], out[..., 1:, :]
    first_out.addcmul_(-sin, second)
    second_out.addcmul_(sin, first)
    return out.reshape(*out.shape[:-2], -1).swapaxes(1, 2).flatten(2).to(x.dtype)


@form(2)
def ltx2(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = (t[None, None] for t in (angles(x).cos(), angles(x).sin()))
    q, k = (heads(t).swapaxes(1, 2) for t in (x * w, x * b))
    return split(q, cos, sin), split(k, cos, sin)


@form(1)
def in_place_one_after_the_other(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What is written last reads what was written before."""
    pairs = heads(x * w).unflatten(-1, (2, -1))
    out = pairs * 0.6
    first, second = out[..., :1, :], out[..., 1:, :]
    first.addcmul_(pairs[..., 1:, :], pairs[..., 1:, :].cos())
    second.add_(first * 0.5)
    return out.flatten(-2)


@form(1)
def two_heads(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Members are heads, which lie in one row of what they are a view of."""
    q = heads(x * w)
    first, second = q.chunk(2, 2)
    return q * 0.6 + torch.cat((-second, first), 2) * 0.8


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
