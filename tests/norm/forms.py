"""Normalisations and what stands around them, as people write them.

Each takes x, of (batch, rows, features) or (batch, channels, height, width), a weight and a bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURES, CHANNELS = 16, 8
Form: TypeAlias = Callable[[Tensor, Tensor, Tensor], Any]
ROWS: list[Form] = []
"""Of features."""
IMAGES: list[Form] = []
"""Of channels."""


def rows(form: Form) -> Form:
    ROWS.append(form)
    return form


def images(form: Form) -> Form:
    IMAGES.append(form)
    return form


# -- torch's own functions


@rows
def layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, (FEATURES,), w, b, 1e-6)


@rows
def layer_norm_of_torch(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.layer_norm(x, [FEATURES], weight=w, bias=b)


@rows
def layer_norm_over_two_dimensions(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-2:]) * w


@rows
def layer_norm_without_bias(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, (FEATURES,), w) + 0 * b


@rows
def modulated(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """DiT: shift and scale are slices of one embedding, for each element of the batch."""
    shift, scale, gate = (x.mean(1) @ torch.stack([w, b, w + b]).T).sigmoid().chunk(3, -1)
    modulated = F.layer_norm(x, (FEATURES,)) * (1 + scale[:, None]) + shift[:, None]
    return x + gate[:, None] * modulated


@rows
def changed_in_place(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = F.layer_norm(x, (FEATURES,), w)
    h.mul_(0.5).add_(b.float())
    return F.silu(h, inplace=True) * 2


@rows
def in_a_sandwich_of_float(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x.float(), (FEATURES,), w.float(), b.float()).type_as(x)


@rows
def after_a_residual(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    residual = x + x.flip(1)
    return residual * 2, F.layer_norm(residual, (FEATURES,), w, b)


@rows
def after_a_reshaped_residual(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Swin: rows of windows are rows of an image again before the next norm."""
    residual = (x + x.flip(1)).reshape(-1, FEATURES)
    return F.layer_norm(residual, (FEATURES,), w, b), residual * 2


@rows
def after_a_residual_in_float(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Wan."""
    residual = (x.float() + x.flip(1) * b).type_as(x)
    h = F.layer_norm(residual.float(), (FEATURES,), w.float())
    return h.type_as(residual), residual * 2


@rows
def rearranged_between(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = F.layer_norm(x, (FEATURES,), w, b).view(*x.shape[:-1], 2, FEATURES // 2)
    return F.silu(h.transpose(1, 2) * 0.3) + 1


@rows
def beside_its_transpose(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What is read in two arrangements stays outside, before and after."""
    square = x[:, :FEATURES] * b
    h = F.layer_norm(square + square.mT, (FEATURES,), w)
    return h * h.mT


@rows
def dropped_in_evaluation(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(F.dropout(x, 0.1, False) + b, (FEATURES,), w) + F.dropout(x, 0.5, False)


@rows
def rotated_in_part(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """CogVideoX's norm of q: rows behind those of the text are replaced by rotated ones."""
    q = F.layer_norm(x, (FEATURES,), w, b)
    q[:, 3:] = q[:, 3:] * 0.6 + q[:, 3:].flip(-1) * 0.8
    return q


@rows
def rms_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.rms_norm(x, (FEATURES,), w) * b


@rows
def unit_vectors(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) * FEATURES**0.5 * w + b


@rows
def unit_columns(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.normalize(x, dim=1) * w + b


@images
def group_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 2, w, b, 1e-6))


@images
def one_group(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.group_norm(x, 1, w, b))


@images
def scale_and_shift(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A residual block's norm with the time embedding after it."""
    scale = x.mean((2, 3))[:, :, None, None]
    return F.silu(F.group_norm(x, 4, w, b) * (1 + scale) + scale) / 1.0


@images
def embedding_before(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """And with the embedding before it."""
    h = x + x.amax((2, 3))[:, :, None, None]
    h = F.group_norm(h, 2, w, b)
    return h * torch.sigmoid(h)


@images
def of_each_channel(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.relu(F.instance_norm(x, weight=w, bias=b)).square()


@images
def of_each_channel_alone(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.instance_norm(x) * w[:, None, None]


@images
def permuted_layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """ConvNeXt's norm over the channels of an image."""
    return F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,), w, b).permute(0, 3, 1, 2)


# -- written out


@rows
def llama(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x.to(torch.float32)
    variance = h.pow(2).mean(-1, keepdim=True)
    h = h * torch.rsqrt(variance + 1e-6)
    return w * h.to(x.dtype)


@rows
def gpt_oss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x.to(torch.float32)
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)
    return (w * h).to(x.dtype)


@rows
def gemma(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (h * (1.0 + w.float())).type_as(x)


@rows
def t5(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    h = x * torch.rsqrt(variance + 1e-6)
    return w * h.to(w.dtype)


@rows
def with_a_root(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w


@rows
def with_a_power(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return w * x * (x.square().mean(dim=-1, keepdim=True) + 1e-6) ** -0.5


@rows
def by_a_reciprocal(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * (1 / torch.sqrt((x**2).mean(-1, True) + 1e-6)) + b


@rows
def by_the_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """lucidrains' RMS norm."""
    norm = torch.norm(x, dim=-1, keepdim=True) * FEATURES**-0.5
    return x / norm.clamp(min=1e-8) * w


@rows
def by_the_vector_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12) * w


@rows
def by_a_sum(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The root of a sum: SwinV2's q and k, say."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) * w


@rows
def by_a_sum_over_its_number(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) / FEATURES + 1e-6) * w


@rows
def without_keepdim(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6)[..., None] * w


@rows
def along_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6) * w


@rows
def bert(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The layer norm of TensorFlow's days."""
    u = x.mean(-1, keepdim=True)
    s = (x - u).pow(2).mean(-1, keepdim=True)
    h = (x - u) / torch.sqrt(s + 1e-12)
    return w * h + b


@rows
def by_the_variance(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return w * (x - mean) * torch.rsqrt(variance + 1e-5) + b


@rows
def by_both(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * w + b


@rows
def by_the_deviation(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / x.std(-1, unbiased=False, keepdim=True) * w + b


@rows
def of_centred_rows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * w + b


@rows
def squared_relu_before(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = F.relu(x * w + b).square()
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)


@rows
def gated(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Mamba's gated norm, with the gate after it."""
    h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w
    return h * F.silu(x.flip(-1))


@rows
def heads(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Qwen3's norm of q within a head."""
    q = (x * b).view(*x.shape[:2], 2, FEATURES // 2)
    q = q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (w[: FEATURES // 2] * q).transpose(1, 2)


@images
def layer_norm_of_channels(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """SAM's norm."""
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    h = (x - u) / torch.sqrt(s + 1e-6)
    return w[:, None, None] * h + b[:, None, None]


@images
def rms_of_channels(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Wan's VAE."""
    return F.normalize(x, dim=1) * CHANNELS**0.5 * w[:, None, None]


@images
def groups_by_hand(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A group norm in five dimensions."""
    grouped = x.reshape(x.shape[0], 2, CHANNELS // 2, *x.shape[2:])
    mean = grouped.mean((2, 3, 4), keepdim=True)
    variance = grouped.var((2, 3, 4), keepdim=True, unbiased=False)
    h = ((grouped - mean) * torch.rsqrt(variance + 1e-5)).reshape(x.shape)
    return F.silu(h * w[:, None, None] + b[:, None, None])
