"""What rows are multiplied with: factors that have no features, and a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from fuser.graph.axes import Dims, leaves, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import is_contraction, pull_contraction, pull_pointwise, pull_view

from .copies import CASTS, COPIES
from .space import Place, Space

_HALVES = {torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class Divisor(Place):
    """A factor by which is divided."""


@dataclass(frozen=True)
class Weights:
    """A product.

    Attributes:
        factors: tensors, with axes of rows alone.
        scale: a number.
    """

    factors: tuple[Place, ...] = ()
    scale: float = 1.0

    def times(self, other: Weights) -> Weights:
        return Weights((*self.factors, *other.factors), self.scale * other.scale)

    def without(self, factor: int) -> Weights:
        """All but one of the factors."""
        return Weights((*self.factors[:factor], *self.factors[factor + 1 :]), self.scale)


def weighted(space: Space, op: Op, node: Node, dims: Dims) -> tuple[Weights, Node, Dims] | None:
    """The factor of a product that has no features, and what is multiplied with it."""
    if is_contraction(op):
        product = pull_contraction(op, node, dims)
        sides = [(product.a, product.a_dims), (product.b, product.b_dims)]
        return None if leaves((product.inner,)) else _split(space, sides)
    if op.name not in ("mul", "div") or op.args.get("rounding_mode") is not None:
        return None
    number = number_of(op)
    if number is not None:
        ((rows, own),) = pull_pointwise(op, node, dims).items()
        return Weights(scale=number), rows, own
    return None if op.name == "div" else _split(space, list(pull_pointwise(op, node, dims).items()))


def number_of(op: Op) -> float | None:
    """By which number a tensor is multiplied, if it is by one."""
    tensor, number = op.args.get("input"), op.args.get("other")
    if op.name == "mul" and is_tensor(number):
        tensor, number = number, tensor
    if not is_tensor(tensor) or not isinstance(number, (int, float)) or type(number) is bool:
        return None
    if op.name == "div":
        return None if number == 0 else 1 / number
    return float(number)


def _split(space: Space, inputs: Sequence[tuple[Node, Dims]]) -> tuple[Weights, Node, Dims] | None:
    plain = [pair for pair in inputs if not set(leaves(pair[1])) - space.row_axes]
    if len(inputs) != 2 or len(plain) != 1:
        return None
    ((rows, own),) = (pair for pair in inputs if pair is not plain[0])
    return _factors(space, *plain[0]), rows, own


def _factors(space: Space, node: Node, dims: Dims) -> Weights:
    """A factor; where it was computed for rows that were picked, what it was computed of."""
    place = space.weight(Place(node, dims))
    whole = Weights((place,))
    if not space.picked_axes & set(leaves(place.dims)):
        return whole
    passed = {place.node}
    while node is not place.node:
        passed.add(node)
        node = space.view.op(node).args["input"]
    dims, op = place.dims, space.view.op(node)
    step = unchanged(space, node, dims)
    if step is not None:
        found = _factors(space, *step)
    elif op.name not in ("mul", "div") or op.inplace or op.args.get("rounding_mode") is not None:
        return whole
    else:
        number, inputs = number_of(op), list(pull_pointwise(op, node, dims).items())
        if number is None and (op.name == "div" or len(inputs) != 2):
            return whole
        found = Weights(scale=1.0 if number is None else number)
        for source in inputs:
            found = found.times(_factors(space, *source))
    space.interior |= passed
    return found


def unchanged(space: Space, node: Node, dims: Dims) -> tuple[Node, Dims] | None:
    """The input of a node that changes no number, but for a rounding to the dtype of the sum."""
    op = space.view.op(node)
    if op.inplace:
        return None
    if op.kind is Kind.VIEW:
        return pull_view(op, node, dims)
    source = op.args.get("input")
    if not is_tensor(source):
        return None
    if op.name in COPIES or (op.kind is Kind.DROPOUT and not draws(node, op)):
        return source, dims
    before, after = value(source).dtype, value(node).dtype
    if op.name in CASTS and before.is_floating_point and after.is_floating_point:
        rounds = after.itemsize < before.itemsize or {before, after} == _HALVES
        return None if rounds and after is not space.dtype else (source, dims)
    return None


def same_weights(one: Weights, other: Weights) -> bool:
    """Whether two products have the same factors."""
    rest = [_key(place) for place in other.factors]
    for place in one.factors:
        key = _key(place)
        if key not in rest:
            return False
        rest.remove(key)
    return not rest and one.scale == other.scale


def _key(place: Place) -> tuple[object, ...]:
    return type(place) is Divisor, place.node, resolve(place.dims)
