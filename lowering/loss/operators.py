"""`fuser::linear_cross_entropy`: the loss in chunks of rows, and its gradients.

    (x, weight, bias, target, weights, squares, captured, spec, ahead)
        -> (loss, nll, lse, gradients of x, weight, bias and captured that are computed ahead)

A loss of all rows has one gradient, a number, so those of the operands are computed with it, while
the logits are there: `ahead` says which. The backward only multiplies them. Where rows have a
gradient each, or one was not computed ahead, the backward computes the logits of each chunk again.
Gradients of gradients are taken of the whole loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import LinearCrossEntropySpec, Reduction

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from .cost import is_ahead, slower
from .emission import emit
from .problem import Problem, problem_of
from .reference import OPERANDS, gradients
from .sweep import Swept, Wanted, sweep

WORK = 1.0
_GRADIENTS = "Tensor, Tensor, Tensor, Tensor"


def _swept(of: Problem, grad: Tensor | float, wanted: Wanted) -> Swept:
    """A sweep for this gradient of the result."""
    loss, square = of.counts()
    own = loss.each(grad)
    more = None if square is None else 2 * square.each(grad)

    def coefficients(rows: slice, lse: Tensor) -> tuple[Tensor, Tensor]:
        return (own[rows] if more is None else own[rows] + more[rows] * lse), own[rows]

    return sweep(of, coefficients, wanted)


def _run(*arguments: Any) -> tuple[Tensor, ...]:
    of, ahead = problem_of(arguments[:-1]), Wanted(*arguments[-1])
    with torch.autocast(of.x.device.type, enabled=False):
        of.require_classes()
        found = _swept(of, 1.0, ahead)
        loss, square = of.counts()
        if of.spec.reduction is Reduction.NONE:
            result = loss.factors * found.nll
        else:
            result = loss.sum(found.nll)
            if square is not None:
                result = result + square.sum(found.lse.square())
        return (result.to(of.spec.dtype), found.nll, found.lse, *_filled(of, found))


def _run_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias and captured; of no elements where they are not wanted."""
    of, needs = problem_of(arguments[:-1]), Wanted(*arguments[-1])
    with torch.autocast(of.x.device.type, enabled=False):
        return _filled(of, _swept(of, grad, needs))


def _filled(of: Problem, found: Swept) -> tuple[Tensor, ...]:
    made = (found.x, found.weight, found.bias, found.captured)
    return tuple(of.x.new_empty(0) if g is None else g for g in made)


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    of = problem_of(arguments[:-1])
    new, rows = of.x.new_empty, of.rows
    return (
        new(rows if of.spec.reduction is Reduction.NONE else (), dtype=of.spec.dtype),
        new(rows, dtype=of.dtype),
        new(rows if of.spec.square else 0, dtype=of.dtype),
        *_fake_backward(arguments[0], *arguments),
    )


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    of, needs = problem_of(arguments[:-1]), Wanted(*arguments[-1])
    new = of.x.new_empty
    return (
        new(of.x.shape if needs.x else 0),
        new(of.weight.shape if needs.weight else 0),
        new(of.classes if needs.bias else 0),
        new(len(of.captured), dtype=of.dtype) if needs.captured else new(0),
    )


linear_cross_entropy = torch.library.custom_op(
    "fuser::linear_cross_entropy",
    _run,
    mutates_args=(),
    schema=f"({OPERANDS}, bool[] ahead) -> (Tensor, Tensor, Tensor, {_GRADIENTS})",
)
linear_cross_entropy.register_fake(_fake)
linear_cross_entropy_backward = torch.library.custom_op(
    "fuser::linear_cross_entropy_backward",
    _run_backward,
    mutates_args=(),
    schema=f"(Tensor grad, {OPERANDS}, bool[] needs) -> ({_GRADIENTS})",
)
linear_cross_entropy_backward.register_fake(_fake_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, captured, ctx.spec, ctx.ahead = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *captured, *output[1:])


def _formula(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    operands = (*saved[:6], list(saved[6:-6]), ctx.spec)
    if torch.is_grad_enabled():  # a gradient of the gradient is wanted
        return (*gradients(grad, operands), None, None)
    nll, lse, *made = saved[-6:]
    of = problem_of(operands)
    needs = [_needs(t) for t in (of.x, of.weight, of.bias)]
    needs.append(any(map(_needs, of.captured)))
    if of.spec.reduction is Reduction.NONE or not all(
        has or not needed for has, needed in zip(ctx.ahead, needs, strict=True)
    ):
        made = list(linear_cross_entropy_backward(grad, *operands, needs))
    else:
        made = [(g * grad).to(g.dtype) for g in made]
    own = [g if needed else None for g, needed in zip(made[:3], needs, strict=False)]
    numbers: list[Tensor | None] = [None] * len(of.captured)
    if needs[3]:
        pairs = zip(of.captured, made[3].unbind(), strict=True)
        numbers = [g.to(c.dtype).reshape(c.shape) if _needs(c) else None for c, g in pairs]
    return (*own, None, *_of_factors(of, grad, nll, lse), numbers, None, None)


def _of_factors(of: Problem, grad: Tensor, nll: Tensor, lse: Tensor) -> list[Tensor | None]:
    """Gradients of `weights` and `squares`."""
    loss, square = of.counts()
    pairs = [(of.weights, nll * of.spec.scale, loss.number)]
    if square is None:
        pairs.append((None, nll, 1))
    else:
        pairs.append((of.squares, lse.square() * of.spec.square, square.number))
    return [
        (rows * (grad / number)).sum_to_size(factor.shape).to(factor.dtype)
        if factor is not None and _needs(factor)
        else None
        for factor, rows, number in pairs
    ]


def _needs(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point() and tensor.requires_grad


linear_cross_entropy.register_autograd(_formula, setup_context=_save)


@register_lowering(LinearCrossEntropySpec, order=5)
class Chunked(Lowering):
    """`fuser::linear_cross_entropy`: no more logits at a time than those of a chunk of rows."""

    name: ClassVar[str] = "chunks of rows"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        ahead = context.training and is_ahead(call.spec)

        def put(builder: Builder) -> Node:
            function = torch.ops.fuser.linear_cross_entropy.default
            return emit(builder, call, function, ahead=ahead)

        why = "logits of a chunk of rows at a time, and their gradient with them"
        return Emission(put, "aten.chunks", why, slower(call, context), {}, WORK)
