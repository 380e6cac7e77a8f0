"""`fuser::generated_activation`: an activation as a spec says, by a kernel generated for it.

On a GPU the operator opens into kernel launches that Inductor sees; in Triton's interpreter it
stays closed, around an operator that runs the same kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..operands import gradients_of, result_of, save, saved, spec_of
from .problem import problem


@torch.library.custom_op("fuser::interpreted_activation", mutates_args=(), device_types="cpu")
def interpreted_activation(captured: Sequence[Tensor], spec: str, origin: str) -> Tensor:
    """`generated_activation` in Triton's interpreter."""
    return problem(captured, spec, origin).forward()


@interpreted_activation.register_fake
def _(captured: Sequence[Tensor], spec: str, origin: str) -> Tensor:
    return result_of(problem(captured, spec, origin).spec, captured)


@torch.library.custom_op(
    "fuser::interpreted_activation_backward", mutates_args=(), device_types="cpu"
)
def interpreted_activation_backward(
    grad: Tensor, captured: Sequence[Tensor], spec: str, origin: str, needs: Sequence[bool]
) -> list[Tensor]:
    """`generated_activation_backward` in Triton's interpreter."""
    found = problem(captured, spec, origin).backward(grad, needs)
    wanted = gradients_of(grad, captured, spec_of(spec), needs)
    pairs = zip(found, wanted, strict=True)
    return [g if g.stride() == own.stride() else own.copy_(g) for g, own in pairs]


@interpreted_activation_backward.register_fake
def _(
    grad: Tensor, captured: Sequence[Tensor], spec: str, origin: str, needs: Sequence[bool]
) -> list[Tensor]:
    return gradients_of(grad, captured, spec_of(spec), needs)


@torch.library.triton_op("fuser::generated_activation", mutates_args=())
def generated_activation(captured: Sequence[Tensor], spec: str, origin: str) -> Tensor:
    """An activation as a spec says.

    Args:
        captured: of the same rank, parts first; see `ActivationSpec`.
        spec: text of an `ActivationSpec`.
        origin: pattern and source lines, for the header of generated text.

    Returns:
        y, in the order in memory of the first operand that is not broadcast.
    """
    if captured[0].device.type == "cpu":
        return interpreted_activation(captured, spec, origin)
    return problem(captured, spec, origin).forward()


@torch.library.triton_op("fuser::generated_activation_backward", mutates_args=())
def generated_activation_backward(
    grad: Tensor, captured: Sequence[Tensor], spec: str, origin: str, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `generated_activation` for the operands where `needs` says so."""
    if grad.device.type == "cpu":
        return interpreted_activation_backward(grad, captured, spec, origin, needs)
    return problem(captured, spec, origin).backward(grad, needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    captured, ctx.spec, ctx.origin = inputs
    save(ctx, captured, ctx.spec)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    given = saved(ctx, grad)
    found = iter(generated_activation_backward(grad, given, ctx.spec, ctx.origin, ctx.needs))
    return [next(found) if n else None for n in ctx.needs], None, None


torch.library.register_autograd("fuser::generated_activation", _backward, setup_context=_save)
