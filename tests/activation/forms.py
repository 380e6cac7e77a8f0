"""Activations and what stands around them, as people write them.

Each takes x and y, of (batch, rows, features) or (batch, channels, height, width), a weight along
the last dimension, or the channels, and a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURES, CHANNELS = 16, 8
HALF = FEATURES // 2
Form: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
GATED: list[Form] = []
PLAIN: list[Form] = []
IMAGES: list[Form] = []
"""Of channels; some are gated."""


ROUNDED: list[Form] = []
"""With a result of eight bits, which has no gradient."""


def gated(form: Form) -> Form:
    GATED.append(form)
    return form


def plain(form: Form) -> Form:
    PLAIN.append(form)
    return form


def images(form: Form) -> Form:
    IMAGES.append(form)
    return form


def rounded(form: Form) -> Form:
    ROUNDED.append(form)
    return form


# -- of eight bits


@rounded
def swiglu_fp8(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """With a scale that is known, as vLLM does it; the result is read again."""
    gate, up = torch.cat((x, y), -1).chunk(2, -1)
    scaled = (F.silu(gate) * up) / a.float()
    return scaled.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float() * a


@rounded
def gelu_int8(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    q = torch.round(F.gelu(x * w) * 40.0).clamp(-128, 127).to(torch.int8)
    return q.view(-1, FEATURES)


@rounded
def squared_relu_e5m2(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return (F.relu(x).square() * w).to(torch.float8_e5m2).view(torch.int8)


# -- gates of two tensors


@gated
def swiglu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.silu(x) * y


@gated
def swiglu_written_out(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return y * (x * torch.sigmoid(x))


@gated
def one_after_the_other(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x * y * x.sigmoid()


@gated
def sigmoid_gate(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x.mul(torch.sigmoid(y + a))


@gated
def softplus_gate(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """Mamba's step, times what it is a step of."""
    return F.softplus(x + w) * y


@gated
def mish_gate(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.mish(x) * y


@gated
def quick_gelu_gate(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x) * y


@gated
def biases_before(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.gelu(x + w) * (y - w)


@gated
def casts_around(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return (F.silu(x.float()) * y.float()).to(x.dtype)


@gated
def dropout_of_inference(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.dropout(F.dropout(F.gelu(x), 0.1, training=False) * y, 0.5, False)


@gated
def residual_and_scale_after(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.addcmul(y, F.silu(x) * y.flip(1) * 0.5, w)


@gated
def product_in_place(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    h = F.silu(x)
    h *= y
    return h + 1


@gated
def added_product(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.addcmul(x, F.relu(x), y, value=0.5)


# -- gates of halves


@gated
def geglu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """Diffusers': the second half is the gate."""
    h, gate = (x + w).chunk(2, dim=-1)
    return h * F.gelu(gate)


@gated
def split_halves(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    gate, up = x.split(HALF, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


@gated
def reglu_of_narrow(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x.narrow(-1, 0, HALF).relu() * torch.narrow(x, -1, HALF, HALF)


@gated
def slices(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    d = x.shape[-1] // 2
    return F.silu(x[..., :d]) * x[..., d:]


@gated
def slices_from_the_end(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.silu(x[:, :, -HALF:]) * x[:, :, :-HALF]


@gated
def clamped_in_turn(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """GPT-OSS."""
    h = x + w
    gate, up = h[..., ::2], h[..., 1::2]
    gate = gate.clamp(min=None, max=1.5)
    up = up.clamp(min=-1.5, max=1.5)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


@gated
def unbound(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    gate, up = x.unflatten(-1, (2, HALF)).unbind(-2)
    return F.silu(gate) * up


@gated
def positions_of_a_view(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    pairs = x.view(*x.shape[:-1], HALF, 2)
    return F.silu(pairs[..., 0]) * pairs.select(-1, 1)


@gated
def glu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.glu(x, dim=-1) * 2


@gated
def quarters(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    p, q, r, s = (x * w).chunk(4, -1)
    return F.silu(p) * q + torch.tanh(r) * s


@gated
def halves_in_float(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return (F.silu(gate.float()) * up.float().contiguous()).type_as(x)


@gated
def two_of_four(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    gate, up, *others = x.chunk(4, -1)
    return F.silu(gate) * up, others[0].sum() + others[1].sum()


@gated
def overlapping_halves(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """An element that both have gets two gradients: these are no halves."""
    return F.silu(x[..., : HALF + 1]) * x[..., HALF - 1 :]


@gated
def the_same_half(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.silu(x[..., :HALF]) * x[..., :HALF] * y[..., HALF:]


@gated
def halves_turned_around(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """One of them is read in another arrangement."""
    gate, up = x[:, : x.shape[-1] // 2].chunk(2, -1)
    return F.silu(gate) * up.transpose(1, 2)


@gated
def written_to_afterwards(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    h = F.silu(x) * y
    h.clamp_(max=1)
    return h.mul_(2)


# -- plain


@plain
def gelu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.gelu(x)


@plain
def biased_gelu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.gelu(x + w, approximate="tanh")


@plain
def gelu_by_tanh(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


@plain
def gelu_by_products(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """transformers' "fast" one."""
    h = x + w
    return 0.5 * h * (1 + torch.tanh(h * 0.7978845608 * (1 + 0.044715 * h * h)))


@plain
def gelu_by_erf(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


@plain
def quick_gelu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@plain
def squared_relu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.square(F.relu(x + w))


@plain
def squared_relu_by_products(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    r = x.clamp(min=0)
    return r * r


@plain
def dyt(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """Zhu et al., "Transformers without Normalization" (2025)."""
    return torch.tanh(a * x) * w + w


@plain
def mish_written_out(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


@plain
def hardswish(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.hardswish(x * a)


@plain
def hardswish_written_out(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


@plain
def soft_cap(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return 3 * torch.tanh(x / 3)


@plain
def in_a_sandwich_of_float(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.silu(x.float()).type_as(x)


@plain
def modulated(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """A shift and a scale for each element of the batch."""
    shift, scale = y.mean(1, keepdim=True), y.amax(1, keepdim=True)
    return F.silu(x) * (1 + scale) + shift


@plain
def beside_a_residual(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return y + w * F.elu(x)


@plain
def by_row(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.leaky_relu(x * y.mean(-1, keepdim=True), 0.2)


@plain
def masked(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return torch.where(x > y, F.softsign(x), y * 0.1)


@plain
def rearranged(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.gelu(x.reshape(-1, 2, HALF)).reshape(x.shape) * 0.5


# -- of images


@images
def image_silu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.silu(x + w[:, None, None])


@images
def image_gate_of_halves(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    h, gate = x.chunk(2, 1)
    return h * torch.sigmoid(gate)


@images
def image_glu(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    return F.glu(x * w[:, None, None], 1)


@images
def image_residual(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
    """The scale is one for each channel of each image."""
    return y + y.mean((2, 3), keepdim=True) * F.gelu(x)


def is_gated(form: Form) -> bool:
    return form in GATED or form in (image_gate_of_halves, image_glu)
