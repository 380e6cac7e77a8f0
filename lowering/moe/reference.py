"""The oracle: expert by expert in plain PyTorch, as the operator `fuser::moe`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import MoeSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from .experts import (
    Experts,
    accumulating,
    apply,
    emit,
    empty_result,
    from_the_start,
    spec_of,
)

WORK = 10.0


def mix(experts: Experts, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The mixture as its spec says, each expert on the tokens that chose it.

    Args:
        experts: their weights.
        x: `(T, D)`.
        indices: `(T, K)`, of experts.
        weights: `(T, K)`.

    Returns:
        `(T, Dout)`.
    """
    spec = experts.spec
    indices = from_the_start(indices, spec.experts)
    out = x.new_zeros(x.shape[0], experts.width, dtype=accumulating(spec.dtype))
    for expert in range(spec.experts):
        token, choice = torch.where(indices == expert)
        if not token.numel():
            continue
        weight = weights[token, choice, None]
        rows = x[token] * weight if spec.weights_first else x[token]
        y = apply(spec, rows, *experts.of(expert))
        out = out.index_add(0, token, (y if spec.weights_first else y * weight).to(out.dtype))
    return out.to(spec.dtype)


@torch.library.custom_op("fuser::moe", mutates_args=())
def moe(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
) -> Tensor:
    """`mix` as one operator; see `fuser.specs.MoeSpec` for the operands."""
    experts = Experts(spec_of(spec), matrices, biases)
    with torch.autocast(x.device.type, enabled=False):
        return mix(experts, x, indices, weights)


@moe.register_fake
def _(x: Tensor, indices: Tensor, weights: Tensor, matrices: Any, biases: Any, spec: str) -> Tensor:
    return empty_result(x, Experts(spec_of(spec), matrices, biases))


@torch.library.custom_op("fuser::moe_backward", mutates_args=())
def moe_backward(
    grad: Tensor,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `moe` for x, weights, matrices and biases, in this order, where `needs`."""
    inputs = [x, weights, *matrices, *biases]
    leaves = [t.detach().requires_grad_(n) for t, n in zip(inputs, needs, strict=True)]
    own_x, own_weights, *rest = leaves
    experts = Experts(spec_of(spec), rest[: len(matrices)], rest[len(matrices) :])
    with torch.autocast(x.device.type, enabled=False), differentiable():
        out = mix(experts, own_x, indices, own_weights)
    wanted = [t for t, n in zip(leaves, needs, strict=True) if n]
    if not out.requires_grad:  # there are no tokens
        return [torch.zeros_like(t) for t in wanted]
    grads = torch.autograd.grad(out, wanted, grad, allow_unused=True)
    return [
        torch.zeros_like(t) if g is None else g.contiguous()
        for g, t in zip(grads, wanted, strict=True)
    ]


@moe_backward.register_fake
def _(
    grad: Tensor, x: Tensor, indices: Tensor, weights: Tensor, matrices: Any, biases: Any,
    spec: str, needs: Any,
) -> list[Tensor]:  # fmt: skip
    inputs = [x, weights, *matrices, *biases]
    return [t.new_empty(t.shape) for t, n in zip(inputs, needs, strict=True) if n]


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keeps the operands of an operator of this family."""
    x, indices, weights, matrices, biases, ctx.spec = inputs
    ctx.count = len(matrices)
    ctx.save_for_backward(x, indices, weights, *matrices, *biases)


def differentiated(function: Any) -> Any:
    """The formula of an operator whose gradients another one gives."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, indices, weights, *rest = ctx.saved_tensors
        needs = [t.is_floating_point() and t.requires_grad for t in (x, weights, *rest)]
        matrices, biases = rest[: ctx.count], rest[ctx.count :]
        found = iter(function(grad, x, indices, weights, matrices, biases, ctx.spec, needs))
        own_x, own_weights, *others = [next(found) if n else None for n in needs]
        return own_x, None, own_weights, others[: ctx.count], others[ctx.count :], None

    return backward


moe.register_autograd(differentiated(moe_backward), setup_context=save)


@register_lowering(MoeSpec, order=100)
class Reference(Lowering):
    """`fuser::moe` with its plain PyTorch kernel: always possible, never fast."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def put(builder: Builder) -> Node:
            return emit(builder, call, torch.ops.fuser.moe.default)

        slower = "it searches the tokens of every expert"
        return Emission(put, "reference", "takes every mixture", slower, {}, WORK)
