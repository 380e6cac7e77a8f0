"""Rotary embeddings of a part of each row, or of several, after a norm, as people write them.

They go to the lists of `forms_pairs`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms_pairs import (
    OTHERS,
    ROTATIONS,
    WIDTH,
    angles,
    heads,
    normed,
    other,
    rms,
    rotate_half,
    rotation,
    tables,
)

__all__ = ["OTHERS", "ROTATIONS"]


@rotation
def in_part(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A quarter of a head is rotated."""
    q = normed(x, w)
    cos, sin = (t[:, None, :2] for t in tables(x))
    turned, rest = q[..., :2], q[..., 2:]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), -1)


@rotation
def half_of_it(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Of a half that is rotated members are quarters, and the other half has two as well."""
    q = normed(x, w)
    cos, sin = (t[:, None, : WIDTH // 2] for t in tables(x))
    turned, rest = q[..., : WIDTH // 2], q[..., WIDTH // 2 :]
    return torch.cat((turned * cos + rotate_half(turned) * sin, rest), -1)


@rotation
def in_the_middle(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Neighbours of a quarter, in what was split."""
    q = normed(x, w).transpose(1, 2)
    before, turned, rest = q.split([2, 2, 4], -1)
    cos, sin = (t[:, :2].float() for t in tables(x, near=True))
    real, imaginary = turned.unflatten(-1, (-1, 2)).unbind(-1)
    other = torch.stack((-imaginary, real), -1).flatten(-2)
    turned = (turned.float() * cos + other.float() * sin).type_as(x)
    return torch.cat((before, turned, rest), -1) * 2


@other
def exchanged_sections(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What was turned is not where it was."""
    q = normed(x, w)
    turned, rest = q[..., :2], q[..., 2:]
    return torch.cat((rest, turned * 0.6 + rotate_half(turned) * 0.8), -1)


@other
def a_section_of_another(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What is put beside it was not normalised."""
    turned = normed(x, w)[..., :2]
    return torch.cat((turned * 0.6 + rotate_half(turned) * 0.8, heads(x)[..., 2:]), -1)


@other
def a_section_that_reads_the_rest(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = normed(x, w)
    turned, rest = q[..., :2], q[..., 2:]
    return torch.cat((turned * 0.6 + rotate_half(turned) * rest[..., :1], rest), -1)


@other
def uneven_sections(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Three of eight have no pairs."""
    q = normed(x, w)
    turned, rest = q[..., :3], q[..., 3:]
    other = torch.cat((-turned[..., 1:], turned[..., :1]), -1)
    return torch.cat((turned * 0.6 + other * 0.8, rest), -1)


@rotation
def three_quarters(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Phi-4's: the length of what is turned does not divide the row, and no section has a pair."""
    q = rms(x, w)
    cos, sin = (t.repeat(1, 2)[:, :12] for t in tables(x))
    turned, rest = q[..., :12], q[..., 12:]
    return torch.cat([turned * cos + rotate_half(turned) * sin, rest], -1)


@rotation
def two_fifths(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Phi-2's; cosines have gradients."""
    q = F.layer_norm(x[..., :10], (10,), w[:10], b[:10])
    turned, rest = q[..., :4], q[..., 4:]
    return torch.cat((turned * b[:4] + rotate_half(turned) * w[:4], rest), -1)


@rotation
def the_last_three_quarters(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Beside all of them; in halves without tables of both."""
    q = normed(x, w).transpose(1, 2)
    rest, turned = q.split([2, 6], -1)
    cos, sin = (t[:, :3] for t in tables(x, near=True))
    first, second = turned.chunk(2, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    turned = torch.cat((rest, turned), -1) * b[:WIDTH]
    return turned + q, q


@rotation
def neighbours_of_three_quarters(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = rms(x, w)
    cos, sin = (t.repeat(1, 2)[:, :12] for t in tables(x, near=True))
    turned, rest = q[..., :12], q[..., 12:]
    other = torch.stack((-turned[..., 1::2], turned[..., ::2]), -1).flatten(-2)
    return torch.cat((turned * cos + other * (sin * b[:12]), rest), -1)


@rotation
def three_pairs_of_four(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """By complex numbers."""
    q = normed(x, w)
    turns = torch.polar(torch.ones_like(angles(x)), angles(x))[:, None, :3]
    z = torch.view_as_complex(q[..., :6].float().unflatten(-1, (3, 2)).contiguous())
    return torch.cat((torch.view_as_real(z * turns).flatten(3).type_as(x), q[..., 6:]), -1)


@rotation
def axes_of_an_image(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Halves of a head are turned by their own angles, and nothing is kept."""
    q, width = normed(x, w).transpose(1, 2), WIDTH // 2
    (c, s), (d, e) = ((t[:, :width] for t in tables(x)), (t[:, width:] for t in tables(x)))
    up, along = q.chunk(2, -1)
    up = up * c + rotate_half(up) * s
    along = along * d + rotate_half(along) * e
    return torch.cat((up, along), -1)


@rotation
def axes_of_a_video(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Three quarters are turned, each by itself, and one is kept."""
    q = rms(x, w)
    parts: list[Tensor] = []
    for i, part in enumerate(q.split(4, -1)[:3]):
        first, second = part.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = (t[:, 2 * i : 2 * i + 2] for t in tables(x))
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), -1)
        parts.append(turned.flatten(-2))
    return torch.cat((*parts, q[..., 12:]), -1)


@rotation
def angles_of_three_axes(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Qwen2-VL's: cosines are put together of those of time, height and width."""
    q = rms(heads(x), w[:WIDTH]).transpose(1, 2)
    each = torch.stack([torch.cat([angles(x) * (i + 1)] * 2, -1) for i in range(3)])[:, None]
    sizes = [1, 1, 2] * 2
    cos, sin = (
        torch.cat([part[i % 3] for i, part in enumerate(t.split(sizes, -1))], -1).unsqueeze(1)
        for t in (each.cos(), each.sin())
    )
    return q * cos.to(x.dtype) + rotate_half(q) * sin.to(x.dtype)


@rotation
def three_quarters_twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = rms(x, w)
    for cos, sin in ((0.6, 0.8), (0.8, 0.6)):
        turned = q[..., :12]
        q = torch.cat((turned * cos + rotate_half(turned) * sin, q[..., 12:]), -1)
    return q


@other
def three_quarters_and_a_half(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One after the other: sections of either are none of the other."""
    q = rms(x, w)
    for end in (12, 8):
        turned = q[..., :end]
        q = torch.cat((turned * 0.6 + rotate_half(turned) * 0.8, q[..., end:]), -1)
    return q


@other
def all_but_the_first_row(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """EVA's, as timm writes it: what is not turned are rows."""
    q = normed(x, w).transpose(1, 2)
    cos, sin = (t[1:] for t in tables(x))
    turned = q[:, :, 1:]
    return torch.cat((q[:, :, :1], turned * cos + rotate_half(turned) * sin), 2)


@other
def halves_of_what_were_neighbours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Three quarters change places within, so that no section is made of sections."""
    q = rms(x, w)
    turned, rest = q[..., :12], q[..., 12:]
    first, second = turned[..., ::2], turned[..., 1::2]
    return torch.cat((torch.cat((first - second, second + first), -1), rest), -1)


@other
def too_many_sections(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = rms(x, w)
    turned, rest = q[..., :14], q[..., 14:]
    return torch.cat((turned * 0.6 + rotate_half(turned) * 0.8, rest), -1)


@other
def axes_that_read_each_other(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    first, second = normed(x, w).chunk(2, -1)
    turned = second * 0.6 + rotate_half(second) * 0.8
    return torch.cat((first * 0.6 + rotate_half(first) * turned, turned), -1)


@other
def axes_of_other_lengths(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    q = rms(x, w)
    first, second = q.split([4, 12], -1)
    first = first * 0.6 + rotate_half(first) * 0.8
    return torch.cat((first, second * 0.6 + rotate_half(second) * 0.8), -1)


@other
def a_part_beside_its_row(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What was turned is read by itself as well."""
    q = rms(x, w)
    turned = q[..., :12] * 0.6 + rotate_half(q[..., :12]) * 0.8
    return torch.cat((turned, q[..., 12:]), -1), turned.flip(-1)
