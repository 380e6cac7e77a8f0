"""The oracle: an activation in plain PyTorch, as the operator `fuser::activation`.

Its gradient recomputes the same plain PyTorch and differentiates that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import ActivationSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from .operands import gradients_of, result_of, save, saved, shape_of, spec_of

WORK = 100.0
"""Of the reference, in units of a generated kernel."""
_SLOWER = "it computes what the region did, operator by operator, and Inductor in one loop"


def activate(spec: ActivationSpec, captured: Sequence[Tensor]) -> Tensor:
    """An activation as `spec` says, with every intermediate in memory.

    Args:
        spec: what is computed.
        captured: of the same rank, parts first; see `ActivationSpec`.
    """
    named = {name: captured[operand][part] for name, (operand, part) in spec.named.items()}
    y = spec.program(**{name: named[name] for name in spec.program.inputs})
    return y.expand(shape_of(captured)).to(spec.dtype)


@torch.library.custom_op("fuser::activation", mutates_args=())
def activation(captured: Sequence[Tensor], spec: str) -> Tensor:
    """`activate` as one operator."""
    with torch.autocast(captured[0].device.type, enabled=False):
        return result_of(spec_of(spec), captured).copy_(activate(spec_of(spec), captured))


@activation.register_fake
def _(captured: Sequence[Tensor], spec: str) -> Tensor:
    return result_of(spec_of(spec), captured)


@torch.library.custom_op("fuser::activation_backward", mutates_args=())
def activation_backward(
    grad: Tensor, captured: Sequence[Tensor], spec: str, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `activation` for the operands where `needs` says so."""
    leaves = [x.detach().requires_grad_(n) for x, n in zip(captured, needs, strict=True)]
    with torch.autocast(grad.device.type, enabled=False), differentiable():
        y = activate(spec_of(spec), leaves)
    wanted = [x for x, n in zip(leaves, needs, strict=True) if n]
    made = torch.autograd.grad(y, wanted, grad, materialize_grads=True)
    empty = gradients_of(grad, captured, spec_of(spec), needs)
    return [mine.copy_(own) for mine, own in zip(empty, made, strict=True)]


@activation_backward.register_fake
def _(grad: Tensor, captured: Sequence[Tensor], spec: str, needs: Sequence[bool]) -> list[Tensor]:
    return gradients_of(grad, captured, spec_of(spec), needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    captured, ctx.spec = inputs
    save(ctx, captured, ctx.spec)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    found = iter(activation_backward(grad, saved(ctx, grad), ctx.spec, ctx.needs))
    return [next(found) if n else None for n in ctx.needs], None


activation.register_autograd(_backward, setup_context=_save)


def emit_operator(builder: Builder, call: Call, function: Any, *more: Any) -> Node:
    """An operator with the signature of `fuser::activation` (and `more`) on arranged operands."""
    spec: ActivationSpec = call.spec
    captured = [builder.operand(call.operands[f"c{j}"]) for j in range(len(spec.parts))]
    return builder.call(function, captured, spec.to_text(), *more)


@register_lowering(ActivationSpec, order=100)
class Reference(Lowering):
    """`fuser::activation` with its plain PyTorch kernel: always possible, never fast."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def emit(builder: Builder) -> Node:
            return emit_operator(builder, call, torch.ops.fuser.activation.default)

        return Emission(emit, "reference", "takes every program", _SLOWER, {}, WORK)
