"""PyTorch's own kernels of layer and group norms, closed to Inductor, which would open them.

    fuser::layer_norm(x, weight, bias, size, eps) -> y, mean, rstd
    fuser::group_norm(x, weight, bias, size, eps) -> y, mean, rstd

`size` is how many of the last dimensions are normalised, or how many groups there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..operator import operator

aten: Any = torch.ops.aten
Gradients: TypeAlias = Callable[..., Sequence[Tensor]]
_OPERANDS = "Tensor x, Tensor? weight, Tensor? bias, int size"
_SAVED = "Tensor grad, Tensor mean, Tensor rstd"


def _layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return aten.native_layer_norm(x.contiguous(), x.shape[-size:], weight, bias, eps)


def _layer_norm_backward(
    grad: Tensor, mean: Tensor, rstd: Tensor,
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    shape = x.shape[-size:]
    # as the kernel reads them, and as it gives its gradients whatever its fake says
    grad, x = grad.contiguous(), x.contiguous()
    found = aten.native_layer_norm_backward(grad, x, shape, mean, rstd, weight, bias, needs)
    return [g for g, n in zip(found, needs, strict=True) if n]


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, *rest = x.shape
    return aten.native_group_norm(_dense(x), weight, bias, n, c, math.prod(rest), size, eps)


def _group_norm_backward(
    grad: Tensor, mean: Tensor, rstd: Tensor,
    x: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, needs: list[bool],
) -> list[Tensor]:  # fmt: skip
    n, c, *rest = x.shape
    x = _dense(x)
    grad = grad.contiguous(memory_format=_format(x))
    found = aten.native_group_norm_backward(
        grad, x, mean, rstd, weight, n, c, math.prod(rest), size, needs
    )
    return [g for g, n in zip(found, needs, strict=True) if n]


def _format(x: Tensor) -> torch.memory_format:
    """The order in which the kernel takes a tensor for one with channels last: by all strides, also
    those of dimensions with one element, which may be anything."""
    if x.ndim != 4:
        return torch.contiguous_format
    _, c, h, w = x.shape
    last = x.stride() == (c * h * w, 1, c * w, c)
    return torch.channels_last if last else torch.contiguous_format


def _dense(x: Tensor) -> Tensor:
    """The kernel reads tensors in one of two orders."""
    return x.contiguous(memory_format=_format(x))


def _define(
    name: str, forward: Callable[..., Any], backward: Gradients, *, half_open: bool = False
) -> None:
    """Makes `fuser::name`, and its gradients of x, weight and bias; in half precision these are
    operators that Inductor opens, where they are to be `half_open`."""
    schema = f"({_OPERANDS}, float eps) -> (Tensor, Tensor, Tensor)"
    operator(name, _plain(forward), forward, schema)
    schema = f"({_SAVED}, {_OPERANDS}, bool[] needs) -> Tensor[]"
    gradients = operator(f"{name}_backward", _plain(backward), backward, schema)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.size, _ = inputs
        ctx.needs = [t is not None and t.requires_grad for t in (x, weight, bias)]
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    def differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        bias = None
        if ctx.bias is not None:  # of which the kernel reads no number: a stand-in without memory
            shape, dtype = ctx.bias
            bias = x.new_zeros((), dtype=dtype).expand(shape)
        given = backward if half_open and x.dtype is not torch.float32 else gradients
        found = iter(given(grad, mean, rstd, x, weight, bias, ctx.size, ctx.needs))
        return *(next(found) if n else None for n in ctx.needs), None, None

    torch.library.register_autograd(f"fuser::{name}", differentiate, setup_context=save)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, *rest: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *rest)

    return run


_define("layer_norm", _layer_norm, _layer_norm_backward)
# in half precision this kernel takes up to six times as long as what Inductor makes of it
_define("group_norm", _group_norm, _group_norm_backward, half_open=True)
