"""`fuser::generated_norm`: a norm as a spec says, by kernels that are generated for it.

On a GPU the operator opens into kernel launches that Inductor sees; in Triton's interpreter it
stays closed, around an operator that runs the same kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import spec_of
from .problem import Statistics, problem
from .run import backward, forward


@torch.library.custom_op("fuser::interpreted_norm", mutates_args=(), device_types="cpu")
def interpreted_norm(
    captured: Sequence[Tensor], spec: str, origin: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`generated_norm` in Triton's interpreter."""
    return forward(problem(captured, spec, origin), keep)


@interpreted_norm.register_fake
def _(
    captured: Sequence[Tensor], spec: str, origin: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of = problem(captured, spec, origin)
    found = of.statistics(keep=keep)
    return of.result(of.spec.dtype), of.result(of.spec.kept), found.means, found.lows, found.scales


@torch.library.custom_op("fuser::interpreted_norm_backward", mutates_args=(), device_types="cpu")
def interpreted_norm_backward(
    grads: Sequence[Tensor],
    captured: Sequence[Tensor],
    means: Tensor,
    lows: Tensor,
    scales: Tensor,
    spec: str,
    origin: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """`generated_norm_backward` in Triton's interpreter."""
    found = backward(problem(captured, spec, origin), grads, Statistics(means, lows, scales), needs)
    return [like(g, captured[i]) for g, i in zip(found, _wanted(needs), strict=True)]


def like(grad: Tensor, operand: Tensor) -> Tensor:
    """A gradient with the strides that `empty_like` says."""
    own = torch.empty_like(operand)
    return grad if grad.stride() == own.stride() else own.copy_(grad)


def _wanted(needs: Sequence[bool]) -> list[int]:
    return [i for i, n in enumerate(needs) if n]


@interpreted_norm_backward.register_fake
def _(
    grads: Sequence[Tensor], captured: Sequence[Tensor], means: Tensor, lows: Tensor,
    scales: Tensor, spec: str,
    origin: str, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    return [torch.empty_like(captured[i]) for i in _wanted(needs)]


@torch.library.triton_op("fuser::generated_norm", mutates_args=())
def generated_norm(
    captured: Sequence[Tensor], spec: str, origin: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A norm as a spec says.

    Args:
        captured: of the same rank, broadcasting against each other.
        spec: text of a `NormSpec`.
        origin: pattern and source lines, for the header of generated text.
        keep: a backward will follow: the statistics are saved for it.

    Returns:
        y, in the order in memory of the first operand that is not broadcast; the same of x, or
        nothing where the spec keeps none; the means in two numbers and the scales of rows, or none.
    """
    if captured[0].device.type == "cpu":
        return interpreted_norm(captured, spec, origin, keep)
    return forward(problem(captured, spec, origin), keep)


@torch.library.triton_op("fuser::generated_norm_backward", mutates_args=())
def generated_norm_backward(
    grads: Sequence[Tensor],
    captured: Sequence[Tensor],
    means: Tensor,
    lows: Tensor,
    scales: Tensor,
    spec: str,
    origin: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `generated_norm` for the operands where `needs` says so; `grads` are of y and,
    where it has one, of x."""
    if captured[0].device.type == "cpu":
        return interpreted_norm_backward(grads, captured, means, lows, scales, spec, origin, needs)
    return backward(problem(captured, spec, origin), grads, Statistics(means, lows, scales), needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    captured, ctx.spec, ctx.origin, _ = inputs
    y, _, means, lows, scales = output
    ctx.mark_non_differentiable(means, lows, scales)
    ctx.set_materialize_grads(False)
    ctx.like = y.shape, y.dtype
    ctx.save_for_backward(means, lows, scales, *captured)


def _backward(ctx: Any, grad: Tensor | None, grad_x: Tensor | None, *_: Any) -> tuple[Any, ...]:
    means, lows, scales, *captured = ctx.saved_tensors
    needs = [x.is_floating_point() and x.requires_grad for x in captured]
    shape, dtype = ctx.like
    if grad is None:
        grad = captured[0].new_zeros(shape, dtype=dtype)
    has_x = spec_of(ctx.spec).kept is not None
    grads = [g for g in (grad, grad_x if has_x else None) if g is not None]
    found = iter(
        generated_norm_backward(grads, captured, means, lows, scales, ctx.spec, ctx.origin, needs)
    )
    return [next(found) if n else None for n in needs], None, None, None


torch.library.register_autograd("fuser::generated_norm", _backward, setup_context=_save)
