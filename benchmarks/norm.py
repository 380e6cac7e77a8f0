"""Normalisations with what stands around them, at sizes of a CPU; forward, and with a backward.

layer_norm            of 4096 x 768
residual_layer_norm   of a sum that is read too, as in a pre-norm block
layer_norm_gelu       with an activation after it
llama_rms             RMS norm as transformers writes it, of 2048 x 1024
adaptive              DiT's, with shift, scale and gate for each element of the batch
group_norm_silu       of 128 channels of 64 x 64, 320 of 32 x 32; contiguous, channels_last
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, Workload
from benchmarks.providers import Function

Tensor = torch.Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias)


def residual_layer_norm(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    total = x + other
    return total + F.layer_norm(total, (x.shape[-1],), weight, bias)


def layer_norm_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.layer_norm(x, (x.shape[-1],), weight, bias))


def llama_rms(x: Tensor, weight: Tensor) -> Tensor:
    hidden = x.to(torch.float32)
    variance = hidden.pow(2).mean(-1, keepdim=True)
    hidden = hidden * torch.rsqrt(variance + 1e-6)
    return weight * hidden.to(x.dtype)


def adaptive(x: Tensor, modulation: Tensor) -> Tensor:
    shift, scale, gate = modulation[:, None].chunk(3, -1)
    return x + gate * (F.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 32, weight, bias))


Shapes: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Norm:
    """A function.

    Attributes:
        shapes: of its arguments, for so many rows, in a sequence or an image.
        rows: how many.
        channels_last: the order of the first argument in memory.
    """

    fn: Function
    shapes: Callable[[int], Shapes]
    rows: int
    channels_last: bool = False


def _rows(n: int) -> Shapes:
    return (n, 768), (768,), (768,)


def _image(channels: int) -> Callable[[int], Shapes]:
    return lambda n: ((1, channels, n, n), (channels,), (channels,))


NORMS: dict[str, Norm] = {
    "layer_norm": Norm(layer_norm, _rows, 4096),
    "residual_layer_norm": Norm(
        residual_layer_norm, lambda n: ((n, 768), (n, 768), (768,), (768,)), 4096
    ),
    "layer_norm_gelu": Norm(layer_norm_gelu, _rows, 4096),
    "llama_rms": Norm(llama_rms, lambda n: ((n, 1024), (1024,)), 2048),
    "adaptive": Norm(adaptive, lambda n: ((4, n, 768), (4, 3 * 768)), 1024),
    "group_norm_silu_128": Norm(group_norm_silu, _image(128), 64),
    "group_norm_silu_128_last": Norm(group_norm_silu, _image(128), 64, True),
    "group_norm_silu_320": Norm(group_norm_silu, _image(320), 32),
    "group_norm_silu_320_last": Norm(group_norm_silu, _image(320), 32, True),
}
FEW = 8
"""Rows for `--quick`."""


def build(spec: Norm, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random arguments; all of them take a gradient where there is a backward."""
    x, *rest = (torch.randn(shape, device=device).to(dtype) for shape in spec.shapes(spec.rows))
    if spec.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    args = tuple(a.requires_grad_(mode == "full") for a in (x, *rest))
    return Case(spec.fn, args, (torch.randn_like(x.detach()),) if mode == "full" else ())


def workloads(quick: bool) -> list[Workload]:
    """All of them."""

    def one(name: str, spec: Norm) -> Workload:
        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(spec, dtype, device, mode)

        return Workload("norm", name, case, ("forward", "full"), ("N", spec.rows), {})

    return [one(name, replace(spec, rows=FEW) if quick else spec) for name, spec in NORMS.items()]
