"""The oracle: `fuser::router`, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import RouterSpec

from ...base import Context, Emission, Lowering, Refusal, register_lowering
from .rows import gradient, route, spec_of

WORK = 10.0


@torch.library.custom_op("fuser::router", mutates_args=())
def router(logits: Tensor, captured: Sequence[Tensor], spec: str) -> tuple[Tensor, Tensor]:
    """The best experts of each token.

    Args:
        logits: `(T, E)`.
        captured: `(E,)` each; no gradient gets to them.
        spec: text of a `RouterSpec`.

    Returns:
        weights `(T, K)` in the spec's dtype, and indices `(T, K)`, int64.
    """
    with torch.autocast(logits.device.type, enabled=False):
        weights, indices = route(spec_of(spec), logits, captured)
    return weights.contiguous(), indices.contiguous()


@router.register_fake
def _(logits: Tensor, captured: Sequence[Tensor], spec: str) -> tuple[Tensor, Tensor]:
    return empty_results(logits, spec_of(spec))


@torch.library.custom_op("fuser::router_backward", mutates_args=())
def router_backward(grad: Tensor, logits: Tensor, indices: Tensor, spec: str) -> Tensor:
    """The gradient of the logits, from that of the weights."""
    with torch.autocast(logits.device.type, enabled=False):
        return gradient(spec_of(spec), grad, logits, indices)


@router_backward.register_fake
def _(grad: Tensor, logits: Tensor, indices: Tensor, spec: str) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, captured, ctx.spec = inputs
    ctx.count = len(captured)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return router_backward(grad, *ctx.saved_tensors, ctx.spec), [None] * ctx.count, None


router.register_autograd(_backward, setup_context=_save)


def empty_results(logits: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor]:
    """Weights and indices of the right shapes and dtypes."""
    shape = (logits.shape[0], spec.choices)
    weights = logits.new_empty(shape, dtype=spec.dtype)
    return weights, logits.new_empty(shape, dtype=torch.int64)


def emit(builder: Builder, call: Call, function: Any, *more: Any) -> list[Node]:
    """Weights and indices by an operator of this family, of its operands and what else it takes."""
    place = {name: builder.operand(operand) for name, operand in call.operands.items()}
    captured = [
        builder.method("detach", node) if value(node).requires_grad else node
        for name, node in place.items()
        if name != "logits"
    ]
    given = builder.call(function, place["logits"], captured, call.spec.to_text(), *more)
    return builder.items(given, 2)


@register_lowering(RouterSpec, order=100)
class ReferenceRouter(Lowering):
    """`fuser::router` with its plain PyTorch kernel: always possible, never fast."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def put(builder: Builder) -> list[Node]:
            return emit(builder, call, torch.ops.fuser.router.default)

        slower = "it runs the operators of the region one by one"
        return Emission(put, "reference", "takes every router", slower, {}, WORK)
