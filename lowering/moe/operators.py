"""How an operator of mixtures is made: schema, fake results, gradients and autocast are the same
whichever way it computes.

    fuser::NAME(x, indices, weights, matrices, biases, spec) -> (T, Dout)
    fuser::NAME_backward(grad, the same, needs) -> gradients of x, weights, matrices and biases
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import MoeSpec
from fuser.torch_private import known_true, to_expr

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

    operator = _custom(name, f"({OPERANDS}) -> Tensor", run, _fake)
    schema = f"(Tensor grad, {OPERANDS}, bool[] needs) -> Tensor[]"
    gradients = _custom(f"{name}_backward", schema, differentiate, _fake_gradients)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, indices, weights, matrices, biases, ctx.spec = inputs
        ctx.count = len(matrices)
        ctx.save_for_backward(x, indices, weights, *matrices, *biases)

    def formula(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, indices, weights, *rest = ctx.saved_tensors
        needs = [t.is_floating_point() and t.requires_grad for t in (x, weights, *rest)]
        matrices, biases = rest[: ctx.count], rest[ctx.count :]
        found = iter(gradients(grad, x, indices, weights, matrices, biases, ctx.spec, needs))
        own_x, own_weights, *others = [next(found) if n else None for n in needs]
        return own_x, None, own_weights, others[: ctx.count], others[ctx.count :], None

    operator.register_autograd(formula, setup_context=save)


def _custom(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    made = torch.library.custom_op(f"fuser::{name}", run, mutates_args=(), schema=schema)
    made.register_fake(fake)
    return made


def emit(builder: Builder, call: Call, function: Any, *more: Any) -> Node:
    """An operator of this family on its operands, and what else it takes."""
    spec: MoeSpec = call.spec
    place = {name: builder.operand(operand) for name, operand in call.operands.items()}
    if "combine" in place:
        indices, weights = _sent(builder, place, spec)
    elif spec.sent:
        indices, weights = _masked(builder, place, spec)
    elif spec.runs:
        indices, weights = _ends(builder, place), _of_rows(builder, place, spec.dtype)
    else:
        indices, weights = _chosen(builder, place, spec)
    scaled = spec.scale != 1
    if scaled and not spec.weights_first:
        weights = builder.call(torch.mul, weights, spec.scale)
    result = builder.call(
        function,
        place["x"],
        indices,
        weights,
        [place[name] for name in spec.matrices],
        [place[name] for name in spec.added],
        replace(spec, scale=1.0, sent=0, parts=1).to_text(),
        *more,
    )
    return builder.call(torch.mul, result, spec.scale) if scaled and spec.weights_first else result


def weight_dtype(call: Call) -> torch.dtype:
    """Of the weights that an operator is given."""
    kinds = ("weights", "dense", "over", "combine")
    given = [o for name, o in call.operands.items() if _kind(name) in kinds]
    dtypes = [o.dtype or value(o.node).dtype for o in given]
    found = reduce(torch.promote_types, dtypes, call.spec.dtype if not dtypes else dtypes[0])
    return found if found.is_floating_point else call.spec.dtype


def _chosen(builder: Builder, place: Mapping[str, Node], spec: MoeSpec) -> tuple[Node, Node]:
    """Indices and weights of the choices, `(T, K)`; those of all parts beside each other."""
    indices, weights = list[Node](), list[Node]()
    for name in spec.indices:
        own = name.removeprefix("indices")
        ending = {n.removesuffix(own): node for n, node in place.items() if n.endswith(own)}
        part = {n: node for n, node in ending.items() if "." not in n}
        weights.append(_weights(builder, part, spec.dtype))
        kept = part.get("kept")
        found = part["indices"]
        indices.append(found if kept is None else _dropped(builder, kept, found, spec))
    if spec.parts == 1:
        return indices[0], weights[0]
    return builder.call(torch.cat, indices, 1), builder.call(torch.cat, weights, 1)


def _kind(name: str) -> str:
    """Of an operand, of whichever part and however many there are."""
    return name.partition(".")[0].partition("_")[0]


def _sent(builder: Builder, place: Mapping[str, Node], spec: MoeSpec) -> tuple[Node, Node]:
    """Indices and weights of the experts at which tokens have a place; the others' index is E."""
    taken = builder.method("ne", place["dispatch"], 0)
    places = builder.call(torch.sum, taken, -1)
    found = builder.call(torch.topk, places, spec.sent, -1)
    counts, chosen = (builder.call(operator.getitem, found, i) for i in range(2))
    kept = builder.call(torch.gt, counts, 0)
    indices = builder.call(torch.where, kept, chosen, spec.experts)
    dense = builder.call(torch.sum, place["combine"], -1)
    return indices, builder.call(torch.gather, dense, 1, chosen)


def _masked(builder: Builder, place: Mapping[str, Node], spec: MoeSpec) -> tuple[Node, Node]:
    """The number of every expert that a mask tells for a token, or that has no number as its
    weight, and E in place of the others; and the weights of all experts."""
    withheld = "withheld" in place
    mask = place["withheld" if withheld else "taken"]
    taken = builder.method("eq" if withheld else "ne", mask, 0)
    weights = _weights(builder, {**place, "indices": taken}, spec.dtype)
    taken = builder.call(torch.logical_or, taken, builder.call(torch.isnan, weights))
    numbers = builder.call(torch.arange, spec.experts, device=value(mask).device)
    return builder.call(torch.where, taken, numbers, spec.experts), weights


def _ends(builder: Builder, place: Mapping[str, Node]) -> Node:
    """Where the runs of experts end, `(E,)`."""
    counts = place.get("counts")
    return place["ends"] if counts is None else builder.method("cumsum", counts, 0)


def _of_rows(builder: Builder, place: Mapping[str, Node], dtype: torch.dtype) -> Node:
    """The product of all factors of rows, `(T, 1)`; ones where there are none."""
    column = builder.method("narrow", place["x"], 1, 0, 1)
    factor = _product(builder, place, "weights")
    if factor is None:
        return builder.call(torch.ones_like, column, dtype=dtype)
    if not value(factor).is_floating_point():
        factor = builder.method("to", factor, dtype=dtype)
    return builder.method("expand_as", factor, column)


def _weights(builder: Builder, place: Mapping[str, Node], dtype: torch.dtype) -> Node:
    """The product of all factors, `(T, K)`: those of all experts, `dense`, where they were chosen,
    and those of choices, `weights`, divided by those `over`; ones where there are none. Instead of
    indices there may be a mask of all experts, which are the choices then."""
    indices, factor = place["indices"], _product(builder, place, "weights")
    masked = value(indices).dtype is torch.bool
    dense = _product(builder, place, "dense")
    if dense is not None:
        if not known_true(value(dense).shape[0] == value(indices).shape[0]):
            tokens = builder.size(to_expr(value(indices).shape[0]))
            dense = builder.method("expand", dense, (tokens, -1))
        chosen = dense if masked else builder.call(torch.gather, dense, 1, indices)
        factor = chosen if factor is None else builder.call(torch.mul, chosen, factor)
    if factor is None:
        return builder.call(torch.ones_like, indices, dtype=dtype)
    if not value(factor).is_floating_point():
        factor = builder.method("to", factor, dtype=dtype)
    over = _product(builder, place, "over")
    factor = factor if over is None else builder.call(torch.div, factor, over)
    sizes = zip(value(factor).shape, value(indices).shape, strict=True)
    whole = all(known_true(a == b) for a, b in sizes)
    return factor if whole else builder.method("expand_as", factor, indices)


def _product(builder: Builder, place: Mapping[str, Node], kind: str) -> Node | None:
    """Of all factors of a kind."""
    found: Node | None = None
    for name, node in place.items():
        if _kind(name) == kind:
            found = node if found is None else builder.call(torch.mul, found, node)
    return found


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
