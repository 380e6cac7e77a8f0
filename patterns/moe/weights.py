"""What rows are multiplied with: factors that have no features, and a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from fuser.graph.axes import Dims, leaves, resolve
from fuser.graph.ops import Op, is_tensor
from fuser.graph.pull import is_contraction, pull_contraction, pull_pointwise

from .space import Place, Space


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


def weighted(space: Space, op: Op, node: Node, dims: Dims) -> tuple[Weights, Node, Dims] | None:
    """The factor of a product that has no features, and what is multiplied with it."""
    if is_contraction(op):
        product = pull_contraction(op, node, dims)
        sides = [(product.a, product.a_dims), (product.b, product.b_dims)]
        return None if leaves((product.inner,)) else _split(space, sides)
    if op.name not in ("mul", "div") or op.args.get("rounding_mode") is not None:
        return None
    source, other = op.args.get("input"), op.args.get("other")
    number = next((n for n in (source, other) if type(n) in (int, float)), None)
    if number is not None:
        divides = op.name == "div"
        if not is_tensor(source if divides or number is other else other):
            return None
        if divides and (number is source or number == 0):
            return None
        inner = source if number is other else other
        ((rows, own),) = pull_pointwise(op, node, dims).items()
        assert rows is inner
        return Weights(scale=1 / number if divides else float(number)), rows, own
    return None if op.name == "div" else _split(space, list(pull_pointwise(op, node, dims).items()))


def _split(space: Space, inputs: Sequence[tuple[Node, Dims]]) -> tuple[Weights, Node, Dims] | None:
    plain = [pair for pair in inputs if not set(leaves(pair[1])) - space.row_axes]
    if len(inputs) != 2 or len(plain) != 1:
        return None
    ((rows, own),) = (pair for pair in inputs if pair is not plain[0])
    return Weights((space.weight(Place(*plain[0])),)), rows, own


def same_weights(one: Weights, other: Weights) -> bool:
    """Whether two products have the same factors."""
    rest = [(place.node, resolve(place.dims)) for place in other.factors]
    for place in one.factors:
        key = (place.node, resolve(place.dims))
        if key not in rest:
            return False
        rest.remove(key)
    return not rest and one.scale == other.scale
