"""What looks like a normalisation, and is another computation: it stays, or stays in part.

Each has a part of the reason that is told, or nothing where nothing is claimed to be near.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import FEATURES, Form

LOOKALIKES: list[tuple[Form, str]] = []


def lookalike(reason: str) -> Callable[[Form], Form]:
    def add(form: Form) -> Form:
        LOOKALIKES.append((form, reason))
        return form

    return add


@lookalike("divides by n - 1")
def unbiased_variance(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1e-5) * w + b


@lookalike("divides by n - 1")
def unbiased_deviation(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The annotated transformer's."""
    return w * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + b


@lookalike("divides by n minus another number")
def another_correction(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=2, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * w + b


@lookalike("eps is added outside the root")
def eps_outside(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.std(-1, keepdim=True, unbiased=False) + 1e-6) * w + b


@lookalike("eps is added outside the root")
def eps_outside_the_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / (x.norm(dim=-1, keepdim=True) + 1e-6) * w


@lookalike("taken over other dimensions")
def mean_over_another_axis(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    variance = x.var(-1, keepdim=True, unbiased=False)
    return centred * torch.rsqrt(variance + 1e-5) * w + b


@lookalike("broadcast along another axis")
def transposed_statistic(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    square = x[:, :FEATURES]
    return square * torch.rsqrt(square.pow(2).mean(-1) + 1e-6)[:, None]


@lookalike("not what")
def another_tensor_divided(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


@lookalike("not what")
def mean_kept(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6) * w


@lookalike("not what")
def mean_of_another(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    other = x.flip(-2)
    return (x - other.mean(-1, keepdim=True)) * torch.rsqrt(
        x.var(-1, keepdim=True, unbiased=False) + 1e-5
    )


@lookalike("another number than of its terms")
def wrong_count(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / (FEATURES - 1) + 1e-6) * w


@lookalike("no square root of a sum of squares")
def sum_of_magnitudes(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / torch.norm(x, p=1, dim=-1, keepdim=True).clamp_min(1e-6) * w


@lookalike("another norm than the square root")
def cubic_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.normalize(x, p=3.0, dim=-1) * w


@lookalike("used elsewhere")
def statistic_escapes(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    variance = x.pow(2).mean(-1, keepdim=True)
    return x * torch.rsqrt(variance + 1e-6) * w, variance


@lookalike("used elsewhere")
def root_escapes(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return x * r * w, r


@lookalike("used elsewhere")
def squares_escape(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    squares = x.pow(2)
    return x * torch.rsqrt(squares.mean(-1, keepdim=True) + 1e-6) * w, squares


@lookalike("more than eps is added")
def two_additions(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6 + 1e-3) * w


@lookalike("running statistics")
def running_statistics(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean, variance = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    return F.instance_norm(x, mean, variance, use_input_stats=False)


@lookalike("computed in float64")
def in_float64(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x.double(), (FEATURES,), w.double(), b.double()).to(x.dtype)


@lookalike("computed in complex64")
def of_complex_numbers(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    z = torch.complex(x.float(), x.float().flip(-1))
    return (z * torch.rsqrt((z * z).mean(-1, keepdim=True) + 1e-6)).abs()


@lookalike("mutated")
def part_written_between(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x * 2
    variance = h.pow(2).mean(-1, keepdim=True)
    h[0] = 1
    return h * torch.rsqrt(variance + 1e-6) * w


@lookalike("not what is divided")
def written_between(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x * 2
    variance = h.pow(2).mean(-1, keepdim=True)
    h.add_(1)
    return h * torch.rsqrt(variance + 1e-6) * w


@lookalike("")
def of_a_cube(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(3).abs().mean(-1, keepdim=True) + 1e-6) * w


@lookalike("")
def cube_root(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** (1 / 3) * w


@lookalike("")
def variance_alone(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


@lookalike("")
def reciprocal_of_a_reciprocal(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


@lookalike("")
def batch_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean, variance = torch.zeros(FEATURES), torch.ones(FEATURES)
    return F.batch_norm(x.flatten(0, 1).float(), mean, variance, w.float(), b.float(), True)


@lookalike("")
def detached_root(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6).detach() * w


@lookalike("not what is divided")
def dropout_in_training(x: Tensor, w: Tensor, b: Tensor) -> Any:
    """The dropout stays where it is: what it drops is not what was squared."""
    return F.dropout(x, 0.5, True) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@lookalike("")
def eps_of_a_tensor(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + w.abs().sum()) * w


WRITING = {written_between, part_written_between}
"""Eager takes no gradient of these."""
WIDE = {in_float64, of_complex_numbers}
"""These are computed in a dtype of their own, whatever they are given."""
