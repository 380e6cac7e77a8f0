"""Quantisations of normalised rows, as people write them: int8 or fp8, with a scale for each row,
or for each group of a row.

Each takes x, of (batch, rows, features), a weight and a bias, and gives what was quantised and
its scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import FEATURES, Form

FORMS: list[Form] = []
GROUPS: list[Form] = []
"""With several scales for a row."""
OTHERS: list[Form] = []
"""What is left, but for the norm."""


def form(fn: Form) -> Form:
    FORMS.append(fn)
    return fn


def groups(fn: Form) -> Form:
    GROUPS.append(fn)
    return fn


def other(fn: Form) -> Form:
    OTHERS.append(fn)
    return fn


def rms(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, (FEATURES,), w)


@form
def by_the_largest(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w)
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return torch.round(h / scale).clamp(-128, 127).to(torch.int8), scale


@form
def smoothquant(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.layer_norm(x, (FEATURES,), w, b)
    scale, _ = h.abs().max(dim=-1, keepdim=True)
    scale = scale.clamp(min=1e-5).div(127)
    return h.div(scale).round().clamp(-127, 127).to(torch.int8), scale


@form
def in_float(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w).float()
    scale = h.abs().amax(dim=-1, keepdim=True) / 127 + 1e-6
    return (h / scale).round().to(torch.int8), scale


@form
def by_the_inverse(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w).float()
    largest = h.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    inverse = 127 / largest
    return torch.clamp(torch.round(h * inverse), -128, 127).to(torch.int8), 1 / inverse


@form
def without_keepdim(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w)
    scale = h.abs().amax(-1).clamp(min=1e-5) / 127
    return (h / scale[..., None]).round().to(torch.int8), scale


@form
def after_a_modulation(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.layer_norm(x, (FEATURES,)) * (1 + w) + b
    scale = torch.amax(torch.abs(h), -1, True).clamp(min=1e-5) / 127
    return (h / scale).round().clamp(-128, 127).to(torch.int8), scale


@form
def scale_alone_inside(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = rms(x, w)
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8)


@form
def beside_the_row(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = rms(x, w)
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale, h


@form
def after_a_residual(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    total = x + b
    h = rms(total, w)
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale, total * 2


@form
def to_fp8(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w).float()
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return (h / scale).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.int8), scale


@form
def where_it_is_zero(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w).float()
    scale = h.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1.0, scale)
    return (h / scale).round().to(torch.int8), scale


# -- groups


@groups
def by_group(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w).unflatten(-1, (4, -1))
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().flatten(-2).to(torch.int8), scale


@groups
def by_group_of_two(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of (..., groups)."""
    h = F.layer_norm(x, (FEATURES,), w, b)
    parts = h.view(*h.shape[:-1], FEATURES // 2, 2)
    scale = torch.amax(torch.abs(parts), dim=-1) / 127 + 1e-6
    return (parts / scale[..., None]).round().clamp(-127, 127).to(torch.int8).view_as(h), scale


@groups
def as_rows(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of all rows are rows of a matrix."""
    h = rms(x, w)
    parts = h.reshape(-1, 8)
    scale, _ = parts.abs().max(dim=1, keepdim=True)
    scale = scale.clamp(min=1e-5) / 127
    return (parts / scale).round().to(torch.int8).view(h.shape), scale.view(*h.shape[:-1], 2)


@groups
def by_the_inverse_of_groups(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Each inverse is repeated for the elements of its group."""
    h = rms(x, w).float()
    largest = h.view(*h.shape[:-1], 4, 4).abs().amax(-1).clamp(min=1e-5)
    inverse = 127 / largest
    return (inverse.repeat_interleave(4, -1) * h).round().to(torch.int8), 1 / inverse


@groups
def expanded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = rms(x, w).unflatten(-1, (2, 8))
    scale = (h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127).expand_as(h)
    return (h / scale).round().to(torch.int8)


@groups
def deepseek(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """fp8, by blocks of a row."""
    h = rms(x, w).flatten(0, 1)
    m, n = h.shape
    parts = h.view(m, -1, 8)
    largest = parts.abs().float().amax(dim=2).view(m, -1).clamp(1e-4)
    fp8 = (parts * (448.0 / largest.unsqueeze(2))).to(torch.float8_e4m3fn).view(m, n)
    return fp8.view(torch.int8), (largest / 448.0).view(m, -1)


# -- others


@other
def by_column(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w)
    scale = h.abs().amax(1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


@other
def of_the_whole(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w)
    scale = h.abs().amax().clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


@other
def of_two_dimensions(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w)
    scale = h.abs().amax((1, 2), keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


@other
def transposed_scale(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = rms(x[:, :FEATURES], w)
    scale = h.abs().amax(-1).clamp(min=1e-5) / 127
    return (h / scale[:, None]).round().to(torch.int8)


@other
def transposed_scale_too(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x[:, :FEATURES], w)
    scale = h.abs().amax(-1).clamp(min=1e-5) / 127
    return (h / scale.unsqueeze(1)).round().to(torch.int8), scale.unsqueeze(2)


@other
def groups_that_cross_rows(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x[:, :FEATURES], w).reshape(-1, 2 * FEATURES)
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


@other
def groups_of_rows(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Four elements of each of four rows."""
    h = rms(x[:, :FEATURES], w).view(-1, 4, FEATURES // 4, 4)
    scale = h.abs().amax((1, 3), keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


@other
def groups_in_turn(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Every fourth element of a row."""
    h = rms(x, w).unflatten(-1, (4, 4))
    scale = h.abs().amax(-2, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


@other
def scales_of_other_groups(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w).unflatten(-1, (4, 4))
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale.transpose(-1, -2)).round().to(torch.int8), scale


@other
def scales_repeated_in_turn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = rms(x, w)
    scale = h.unflatten(-1, (4, 4)).abs().amax(-1).clamp(min=1e-5) / 127
    return (h / scale.repeat(1, 1, 4)).round().to(torch.int8)


@other
def groups_of_two_sizes(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A scale of the row and scales of groups."""
    h = rms(x, w)
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    second = h.unflatten(-1, (4, 4)).abs().amax(-1).clamp(min=1e-5)
    return (h / scale).round().to(torch.int8) * second.repeat_interleave(4, -1).round()


@other
def with_a_zero_point(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Two numbers of each row are read."""
    h = rms(x, w)
    high, low = h.amax(-1, keepdim=True), h.amin(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 255
    return ((h - low) / scale).round().to(torch.uint8), scale, low


@other
def of_another_tensor(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w)
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


@other
def by_the_mean(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = rms(x, w)
    scale = h.abs().mean(-1, keepdim=True).clamp(min=1e-5) / 42
    return (h / scale).round().clamp(-128, 127).to(torch.int8), scale


@other
def with_its_place(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which is the largest is read, too."""
    h = rms(x, w)
    largest, place = h.abs().max(-1, keepdim=True)
    scale = largest.clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale, place
