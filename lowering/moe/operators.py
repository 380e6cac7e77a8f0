"""How an operator of mixtures is made: schema, fake results, gradients and autocast are the same
whichever way it computes.

    fuser::NAME(x, indices, weights, matrices, biases, spec) -> (T, Dout)
    fuser::NAME_backward(grad, the same, needs) -> gradients of x, weights, matrices and biases
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import MoeSpec

from .experts import Experts, spec_of

Forward: TypeAlias = Callable[[Experts, Tensor, Tensor, Tensor], Tensor]
"""Of the experts, x, indices and weights."""
Backward: TypeAlias = Callable[
    [Tensor, Experts, Tensor, Tensor, Tensor, Sequence[bool]], Sequence[Tensor]
]
"""Of the gradient too, and which of x, weights, matrices and biases want one: those, in order."""
OPERANDS = "Tensor x, Tensor indices, Tensor weights, Tensor[] matrices, Tensor[] biases, str spec"


def define(name: str, forward: Forward, backward: Backward) -> None:
    """Makes `fuser::name` and its backward; see `fuser.specs.MoeSpec` for the operands."""

    def run(x: Tensor, indices: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(_experts(*rest), x, indices, weights)

    def differentiate(grad: Tensor, x: Tensor, *operands: Any) -> list[Tensor]:
        indices, weights, *rest, needs = operands
        with torch.autocast(x.device.type, enabled=False):
            return list(backward(grad, _experts(*rest), x, indices, weights, needs))

    schema = f"({OPERANDS}) -> Tensor"
    operator = torch.library.custom_op(f"fuser::{name}", run, mutates_args=(), schema=schema)
    schema = f"(Tensor grad, {OPERANDS}, bool[] needs) -> Tensor[]"
    gradients = torch.library.custom_op(
        f"fuser::{name}_backward", differentiate, mutates_args=(), schema=schema
    )
    operator.register_fake(_fake)
    gradients.register_fake(_fake_gradients)
    operator.register_autograd(_formula(gradients), setup_context=_save)


def emit(builder: Builder, call: Call, function: Any, *more: Any) -> Node:
    """An operator of this family on its operands, and what else it takes."""
    spec: MoeSpec = call.spec
    place = {name: builder.operand(operand) for name, operand in call.operands.items()}
    if "dense" in place:
        place["weights"] = builder.call(torch.gather, place["dense"], 1, place["indices"])
    if "kept" in place:
        place["indices"] = _dropped(builder, place["kept"], place["indices"], spec)
    if "weights" not in place:
        place["weights"] = builder.call(torch.ones_like, place["indices"], dtype=spec.dtype)
    return builder.call(
        function,
        *(place[name] for name in ("x", "indices", "weights")),
        [place[name] for name in spec.matrices],
        [place[name] for name in spec.added],
        spec.to_text(),
        *more,
    )


def _dropped(builder: Builder, kept: Node, indices: Node, spec: MoeSpec) -> Node:
    """Indices without those of choices that are zero in `kept`, `(T, E)` or `(T, K, E)`."""
    apart = value(kept).ndim > value(indices).ndim
    at = builder.method("unsqueeze", indices, -1) if apart else indices
    found = builder.call(torch.gather, kept, -1, at)
    found = builder.method("squeeze", found, -1) if apart else found
    return builder.call(torch.where, builder.call(torch.ne, found, 0), indices, spec.experts)


def _experts(matrices: Sequence[Tensor], biases: Sequence[Tensor], spec: str) -> Experts:
    return Experts(spec_of(spec), matrices, biases)


def _fake(x: Tensor, indices: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    experts = _experts(*rest)
    return x.new_empty(x.shape[0], experts.width, dtype=experts.spec.dtype)


def _fake_gradients(grad: Tensor, x: Tensor, indices: Tensor, weights: Tensor, *rest: Any) -> Any:
    matrices, biases, _, needs = rest
    inputs = [x, weights, *matrices, *biases]
    return [t.new_empty(t.shape) for t, n in zip(inputs, needs, strict=True) if n]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, indices, weights, matrices, biases, ctx.spec = inputs
    ctx.count = len(matrices)
    ctx.save_for_backward(x, indices, weights, *matrices, *biases)


def _formula(gradients: Any) -> Callable[..., tuple[Any, ...]]:
    """Of an operator whose gradients another one gives."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, indices, weights, *rest = ctx.saved_tensors
        needs = [t.is_floating_point() and t.requires_grad for t in (x, weights, *rest)]
        matrices, biases = rest[: ctx.count], rest[ctx.count :]
        found = iter(gradients(grad, x, indices, weights, matrices, biases, ctx.spec, needs))
        own_x, own_weights, *others = [next(found) if n else None for n in needs]
        return own_x, None, own_weights, others[: ctx.count], others[ctx.count :], None

    return backward
