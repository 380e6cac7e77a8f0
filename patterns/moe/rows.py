"""From a sum down to the rows that are added up, and what they are weighted with."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from fuser.graph.axes import Dims, leaves, resolve
from fuser.graph.pull import pull_pointwise

from .expert import MAX_NODES, unchanged
from .order import undone
from .space import Place, Space, require, selected


@dataclass(frozen=True)
class Rows:
    """What experts gave.

    Attributes:
        node, dims: the rows.
        weight: what they are multiplied with, if that was found on the way.
    """

    node: Node
    dims: Dims
    weight: Place | None


def rows_of(space: Space, node: Node, dims: Dims, weight: Place | None = None) -> Rows:
    """Rows without their weight, which is the factor that has no features.

    Args:
        space: what tells rows apart; all other axes are features.
        node: weighted rows.
        dims: their axes.
        weight: where that is known already.
    """
    view, passed = space.view, list[Node]()
    for _ in range(MAX_NODES):
        step = unchanged(space, node, dims) or _unsorted(space, node, dims)
        if step is None:
            op = view.op(node)
            if op.name != "mul" or op.inplace:
                break
            inputs = list(pull_pointwise(op, node, dims).items())
            plain = [pair for pair in inputs if not set(leaves(pair[1])) - space.row_axes]
            if len(inputs) != 2 or len(plain) != 1:
                break
            require(weight is None, "rows are weighted twice", node)
            weight = space.locate(*plain[0])
            step = next(pair for pair in inputs if pair is not plain[0])
        passed.append(node)
        node, dims = step
    space.interior.update(passed)
    return Rows(node, resolve(dims), weight)


def _unsorted(space: Space, node: Node, dims: Dims) -> tuple[Node, Dims] | None:
    """Rows in the order of their experts, of which a node has them token by token again."""
    part = selected(space.view.op(node))
    if part is None or part.new or space.dense or space.order is not None:
        return None
    order = undone(space.view, part.index)
    return None if order is None else (part.source, space.sort(order, dims))
