"""What looks like a gate, or like something that could be fused: it stays, or stays in part.

Each has a part of the reason that is told, or nothing where nothing is claimed to be near.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import Form

LOOKALIKES: list[tuple[Form, str]] = []


def lookalike(reason: str) -> Callable[[Form], Form]:
    def add(form: Form) -> Form:
        LOOKALIKES.append((form, reason))
        return form

    return add


@lookalike("random numbers are drawn between activation and product")
def dropout_in_training(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.dropout(F.silu(x), 0.5, training=True) * y


@lookalike("the activation is used elsewhere")
def activation_is_returned(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    h = F.silu(x)
    return h * y, h


@lookalike("the activation is used elsewhere")
def penalised(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """A loss that keeps activations small."""
    h = F.relu(x)
    return h * y, h.abs().mean()


@lookalike("the activation is broadcast to what it gates")
def one_gate_for_a_row(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.sigmoid(x.mean(-1, keepdim=True)) * y


@lookalike("the activation is broadcast to what it gates")
def parts_along_another_axis(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """One row, and all others."""
    return F.silu(x[:, :1]) * x[:, 1:]


@lookalike("it overwrites its input")
def in_place(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.silu(x.flip(0), inplace=True) * y


@lookalike("it overwrites its input")
def in_place_method(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    h = x.flip(0)
    h.sigmoid_()
    return h * y


@lookalike("an input is mutated")
def written_between(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    up = y.flip(0)
    h = F.silu(x) + up
    up.add_(1)
    return h * up


@lookalike("it is computed in float64")
def in_float64(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.silu(x.double()) * y


@lookalike("it is computed in complex64")
def of_complex_numbers(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    h = torch.tanh(torch.complex(x.float(), y.float())) * y
    return h.real + h.imag


@lookalike("it is computed in int64")
def of_integers(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.relu(x.detach().mul(10).long()) * y


@lookalike("an input is mutated")
def gate_written_between(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    up = x.flip(0)
    h = F.silu(up)
    up.add_(1)
    return h * y


@lookalike("autocast or grad mode changes within the region")
def without_a_gradient(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    with torch.no_grad():
        h = F.silu(x)
    return h * y


@lookalike("it runs inside a torch.func transform")
def inside_a_transform(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.func.vmap(lambda u, v: F.silu(u) * v)(x, y)


@lookalike("")
def of_one_number(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.sigmoid(a[0]) * y


@lookalike("")
def no_activation(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x * (1 + y) + w


WRITING = {written_between, gate_written_between}
"""Eager takes no gradient of these."""
WIDE = {in_float64, of_complex_numbers, of_integers}
"""These are computed in a dtype of their own, whatever they are given, or of rounded numbers."""
IN_PART = {
    dropout_in_training, activation_is_returned, penalised, one_gate_for_a_row,
    parts_along_another_axis,
}  # fmt: skip
"""Their activation becomes an operator, without the product."""
