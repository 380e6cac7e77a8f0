"""Quantisations of normalised rows, as people write them: int8 or fp8, with a scale for each row.

Each takes x, of (batch, rows, features), a weight and a bias, and gives what was quantised and
its scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import FEATURES, Form

FORMS: list[Form] = []
OTHERS: list[Form] = []
"""What is left, but for the norm."""


def form(fn: Form) -> Form:
    FORMS.append(fn)
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
def by_group(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of rows have scales of their own."""
    h = rms(x, w).unflatten(-1, (4, -1))
    scale = h.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().flatten(-2).to(torch.int8), scale


@other
def transposed_scale(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = rms(x[:, :FEATURES], w)
    scale = h.abs().amax(-1).clamp(min=1e-5) / 127
    return (h / scale[:, None]).round().to(torch.int8)


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
