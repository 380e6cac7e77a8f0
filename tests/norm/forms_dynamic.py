"""Quantisations with scales that are found while running, of what is not normalised.

Each takes x, of (batch, rows, features), and two vectors of features, and gives what was quantised
and, mostly, its scales.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import FEATURES, Form

FORMS: list[Form] = []
LOOKALIKES: list[tuple[Form, str]] = []
"""With a part of the reason that is told, or nothing where nothing is claimed to be near."""


def form(fn: Form) -> Form:
    FORMS.append(fn)
    return fn


def lookalike(reason: str) -> Callable[[Form], Form]:
    def add(fn: Form) -> Form:
        LOOKALIKES.append((fn, reason))
        return fn

    return add


def quantised(y: Tensor) -> tuple[Tensor, Tensor]:
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (y / scale).round().clamp(-128, 127).to(torch.int8), scale


def gated(x: Tensor) -> Tensor:
    """SwiGLU."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@form
def swiglu(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return quantised(gated(x))


@form
def of_an_input(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return quantised(x)


@form
def of_one_row_each(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """As while one token is decoded."""
    return quantised(F.gelu(x[:1, :1] * w, approximate="tanh"))


@form
def of_a_vector(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return quantised(w * b)


@form
def in_float(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = gated(x).float()
    inverse = 127 / y.abs().amax(-1).clamp_min(1e-5)
    return (inverse.unsqueeze(-1) * y).round().to(torch.int8), 1 / inverse


@form
def beside_another_reader(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Who reads it afterwards has it as a result."""
    y = F.silu(x) * w
    return *quantised(y), y.sin().sum(-1)


@form
def beside_an_earlier_reader(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """What is made of rows otherwise, before, has them in memory."""
    y = F.silu(x) * w
    total = y.cumsum(1)
    return *quantised(y), total


@form
def with_a_changed_scale(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    integers, scale = quantised(F.relu(x).square() + b)
    return integers, (scale * 2 + 1).squeeze(-1)


@form
def with_a_scale_written_to_afterwards(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    integers, scale = quantised(x * w)
    return integers, scale.mul_(2)


@form
def scale_written_to_before(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x * w
    scale = y.abs().amax(-1, keepdim=True)
    scale.clamp_(min=1.5).div_(127)
    return (y / scale).round().to(torch.int8), scale


@form
def bitnet(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """In place, and back again."""
    scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
    return (x * scale).round().clamp_(-128, 127) / scale


@form
def of_its_input(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A bound of what is rounded is as good a scale."""
    y = torch.tanh(x) * 2
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 63
    return (y / scale).round().to(torch.int8), scale


@form
def and_back(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = F.gelu(x)
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (y / scale).round().clamp(-127, 127) * scale


@form
def by_groups(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    integers, scale = quantised(gated(x).view(-1, 2, 4))
    return integers.view(*x.shape[:-1], 8), scale


@form
def by_groups_read_twice(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x * w + b
    scale = y.unflatten(-1, (4, 4)).abs().amax(-1).clamp(min=1e-5) / 127
    integers = (y.unflatten(-1, (4, 4)) / scale[..., None]).round().to(torch.int8)
    return integers.flatten(-2), scale


@form
def with_a_zero_point(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The least value is another's."""
    y = x * w
    high, low = y.amax(-1, keepdim=True), y.amin(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 127
    return ((y - low) / scale).round().to(torch.int8), scale, low


@form
def to_fp8(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = gated(x).float()
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
    return (y / scale).to(torch.float8_e4m3fn).view(torch.int8), scale


# -- others


@lookalike("one scale for the whole tensor")
def of_the_whole(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x * w
    scale = y.abs().amax() / 127
    return (y / scale).round().to(torch.int8), scale


@lookalike("one scale for the whole tensor")
def of_all_dimensions(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x * w
    scale = y.abs().amax((0, 1, 2), keepdim=True) / 127
    return (y / scale).round().to(torch.int8), scale


@lookalike("not that of a row")
def of_columns(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x * w
    scale = y.abs().amax(1, keepdim=True) / 127
    return (y / scale).round().to(torch.int8), scale


@lookalike("not that of a row")
def of_groups_in_turn(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = (x * w).unflatten(-1, (4, 4))
    scale = y.abs().amax(-2, keepdim=True) / 127
    return (y / scale).round().to(torch.int8), scale


@lookalike("broadcast along another axis")
def transposed(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x[:, :FEATURES] * w
    scale = y.abs().amax(-1) / 127
    return (y / scale.unsqueeze(1)).round().to(torch.int8), scale


@lookalike("of another tensor")
def of_another(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    scale = (x + b).abs().amax(-1, keepdim=True) / 127
    return (x * w / scale).round().to(torch.int8), scale


@lookalike("another tensor")
def of_other_rows(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.flip(1).abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().to(torch.int8), scale


@lookalike("mutated within the region")
def scale_written_to_by_another_name(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x * w
    largest = y.abs().amax(-1, keepdim=True)
    flat = largest.squeeze(-1)
    largest.clamp_(min=3)
    return (y / flat.unsqueeze(-1) * 127).round().to(torch.int8), largest


@lookalike("nothing pointwise is made of a row")
def of_what_is_scaled_in_place(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What is rounded is the row's memory."""
    y = x * w
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    y.div_(scale)
    return y.round().to(torch.int8)


@lookalike("mutated")
def row_written_between(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = x * w
    scale = y.abs().amax(-1, keepdim=True) / 127
    y[:, 0] = 1
    return (y / scale).round().to(torch.int8), scale


@lookalike("made of a row and its largest value alone")
def of_probabilities(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The largest value is a softmax's."""
    y = x * w
    e = (y - y.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True) * 127).round().to(torch.int8)


@lookalike("computed in float64")
def in_float64(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    y = (x * w).double()
    scale = y.abs().amax(-1, keepdim=True) / 127
    return (y / scale).round().to(torch.int8), scale.to(x.dtype)


@lookalike("")
def by_a_known_scale(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x * w / b.abs().clamp(min=0.1)).round().clamp(-128, 127).to(torch.int8)


@lookalike("")
def not_rounded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x * w
    return y / y.abs().amax(-1, keepdim=True).clamp(min=1e-5)


@lookalike("")
def by_a_mean(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x * w
    return (y / y.abs().mean(-1, keepdim=True)).round().clamp(-1, 1).to(torch.int8)


@lookalike("")
def scales_of_other_rows(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
    return (x / scale.roll(1, -2)).round().clamp(-128, 127).to(torch.int8), scale
