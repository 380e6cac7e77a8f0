"""Normalisations that several readers go on with, each in its own way, and gates after a norm.

Each takes x, of (batch, rows, features) or (batch, channels, height, width), a weight and a bias,
and comes with what is computed after the norm, result by result, the last one first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import FEATURES, Form

ROWS: list[tuple[Form, str]] = []
IMAGES: list[tuple[Form, str]] = []
STOPS: list[tuple[Form, str]] = []
"""What must not grow any further, or has nothing to grow over."""


def of(forms: list[tuple[Form, str]], programs: str) -> Callable[[Form], Form]:
    def add(form: Form) -> Form:
        forms.append((form, programs))
        return form

    return add


def _embedding(x: Tensor, w: Tensor, b: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Slices of one embedding of (batch, parts * features), none of them contiguous."""
    every = torch.cat([w * (i + 1) + b for i in range(parts)])
    return (x.mean((1, 2))[:, None] * every).sigmoid().chunk(parts, 1)


@of(ROWS, "((n * c0) + c1); ((n * c2) + c3)")
def modulated_twice(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SD3.5's first blocks, which attend twice."""
    shift, scale, shift_2, scale_2 = _embedding(x, w, b, 4)
    h = F.layer_norm(x, (FEATURES,))
    first = h * (1 + scale[:, None]) + shift[:, None]
    return first, h * (1 + scale_2[:, None]) + shift_2[:, None]


@of(ROWS, "((n * c0) + c1); n")
def itself_and_modulated(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.layer_norm(x, (FEATURES,))
    return h * (1 + w) + b, h


@of(ROWS, "silu(((n * c0) + c1)); ((n * c0) + c1)")
def before_and_after_an_activation(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.layer_norm(x, (FEATURES,), w, b)
    return h, F.silu(h)


@of(ROWS, "((n * c0) + c1); (n * c0)")
def one_of_the_other(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.rms_norm(x, (FEATURES,), w)
    return h, h + b


@of(ROWS, "(n * c0); (n * c1)")
def two_weights(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return h * w, h * b


@of(ROWS, "(n * c0); ((n * c1) + c2)")
def after_a_residual(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """With the sum, three results."""
    total = x + x.flip(1)
    h = F.layer_norm(total, (FEATURES,))
    first, second = h * w + b, h * b
    return first, second, total * 2


@of(ROWS, "(n * c0); n")
def in_two_arrangements(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One result is of heads, which come before rows."""
    h = F.rms_norm(x, (FEATURES,))
    heads = h.view(*x.shape[:2], 2, FEATURES // 2).transpose(1, 2)
    scaled = h * w
    return F.pad(heads, (0, 1)), scaled


@of(ROWS, "(c0 + (c1 * (n * c2)))")
def gated_afterwards(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Lumina: the gate follows the norm, and what it is added to is another tensor."""
    gate = (x.mean(1) * b).unsqueeze(1)
    return x + gate.tanh() * F.rms_norm(x.flip(1) * 2, (FEATURES,), w)


@of(ROWS, "(c0 + ((((n * c1) + c2) / 1) * c3))")
def gated_slice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A gate that is chunked from an embedding, behind a division by one."""
    gate, _ = _embedding(x, w, b, 2)
    return x + F.layer_norm(x.flip(1), (FEATURES,), w, b) / 1.0 * gate[:, None]


@of(ROWS, "((c0 * ((n * (1 + c1)) + c2)) + c3); ((n * c4) + c5)")
def gated_and_modulated(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale, gate = ((w * i + b)[None, None] for i in range(3))
    h = F.layer_norm(x.flip(1), (FEATURES,))
    first = h * (1 + scale) + shift
    return first, gate * (h * (1 + w) + b) + x


@of(IMAGES, "silu(((n * c0) + c1)); ((n * c0) + c1)")
def group_norm_and_its_activation(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.group_norm(x, 2, w, b)
    return h, F.silu(h)


@of(IMAGES, "(((n * c0) + c1) + c2); (((n * c0) + c1) * c2)")
def group_norm_modulated_twice(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.mean((2, 3))[:, :, None, None]
    h = F.group_norm(x, 4, w, b)
    return h * scale, h + scale


# -- what stays outside


@of(STOPS, "n")
def by_its_own_sum(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The way leaves the region and comes back."""
    h = F.layer_norm(x, (FEATURES,))
    return h * h.sum(-1, keepdim=True)


@of(STOPS, "(n * c0)")
def what_another_norm_reads(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Squares belong to the statistic of the next."""
    h = F.layer_norm(x, (FEATURES,), w)
    return h * torch.exp(h.float().square().cumsum(-1).mean(-1, keepdim=True)).to(x.dtype)


@of(STOPS, "n")
def by_a_product_with_itself(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = F.layer_norm(x, (FEATURES,))
    gate = torch.sigmoid(h @ w)
    return h * gate[..., None] + b


@of(STOPS, "(n * c0)")
def read_before_the_second(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What comes after another reader does not join, although nothing depends on that."""
    h = F.layer_norm(x, (FEATURES,), w)
    total = h.cumsum(1)
    return total, h * b


@of(STOPS, "tanh(n); cos(n); sin(n); n")
def five_results(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    h = F.layer_norm(x, (FEATURES,))
    first, second, third = h.sin(), h.cos(), h.tanh()
    return first, second, third, h.exp(), h


@of(STOPS, "n")
def written_to(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.layer_norm(x.detach(), (FEATURES,))
    h[0] = 1
    return h * w, h * b


@of(STOPS, "n")
def widened_to_fp64(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.layer_norm(x, (FEATURES,))
    return h.double() * w, h.double() + b


@of(STOPS, "n")
def broadcast_to_more(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    h = F.layer_norm(x, (FEATURES,))
    more = torch.stack([w, b])[:, None, None]
    return h * more, h + more


@of(STOPS, "n")
def transposed_with_itself(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Results that combine it with a rearranged copy are no function of one element."""
    h = F.layer_norm(x[:, :FEATURES], (FEATURES,))
    return h + h.mT, h - h.mT


@of(STOPS, "n")
def dropped_in_training(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = F.layer_norm(x, (FEATURES,))
    return F.dropout(h, 1.0, True) + h * 0
