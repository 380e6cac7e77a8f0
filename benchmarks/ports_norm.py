"""Chains around norms and activations by Liger's kernels, as its modules call them.

Liger has none for a norm with shift, scale and gate, for one that rounds to fp8, or for images in
channels_last; its cross-entropy overwrites the logits, which all contestants share.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.providers import LIGER

Tensor = torch.Tensor

NAMES = (LIGER,)
EPS = 1e-6
LLAMA = (0.0, "llama", False)
"""Nothing is added to the weight, Llama's casts, and no gradient in place of what it is of."""


def installed() -> bool:
    """Whether Liger can be imported."""
    return find_spec("liger_kernel") is not None


def _function(module: str, name: str) -> Any:
    return getattr(import_module(f"liger_kernel.ops.{module}"), name)


def residual_rms(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    fused = _function("fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    return fused.apply(x, residual, weight, EPS, *LLAMA)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return _function("rms_norm", "LigerRMSNormFunction").apply(x, weight, EPS, *LLAMA)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _function("layer_norm", "LigerLayerNormFunction").apply(x, weight, bias, 1e-5)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    norm = _function("group_norm", "LigerGroupNormFunction")
    return F.silu(norm.apply(x.flatten(2), weight, bias, x.shape[1], 32, 1e-5).view_as(x))


def qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    q, k = rms_norm(q, q_weight).transpose(1, 2), rms_norm(k, k_weight).transpose(1, 2)
    return _function("rope", "LigerRopeFunction").apply(q, k, cos[None], sin[None])


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return _function("swiglu", "LigerSiLUMulFunction").apply(gate, up)
