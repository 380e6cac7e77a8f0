"""From a sum down to the rows that are added up, and what they are weighted with."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from fuser.graph.axes import Dims, resolve

from .expert import MAX_NODES
from .restoring import restored
from .space import Space
from .weights import Weights, unchanged, weighted


@dataclass(frozen=True)
class Rows:
    """What experts gave.

    Attributes:
        node, dims: the rows.
        weights: what they are multiplied with, as far as that was found on the way.
    """

    node: Node
    dims: Dims
    weights: Weights


def rows_of(space: Space, node: Node, dims: Dims, weights: Weights | None = None) -> Rows:
    """Rows without their weights, which are the factors that have no features.

    Args:
        space: what tells rows apart; all other axes are features.
        node: weighted rows.
        dims: their axes.
        weights: those that are known already.
    """
    view, passed, found = space.view, list[Node](), weights or Weights()
    for _ in range(MAX_NODES):
        step = unchanged(space, node, dims) or _unsorted(space, node, dims, passed)
        if step is None:
            factor = weighted(space, view.op(node), node, dims)
            if factor is None:
                break
            found, step = found.times(factor[0]), factor[1:]
        passed.append(node)
        node, dims = step
    space.interior.update(passed)
    return Rows(node, resolve(dims), found)


def _unsorted(space: Space, node: Node, dims: Dims, passed: list[Node]) -> tuple[Node, Dims] | None:
    """Rows in the order of their experts, of which a node has them token by token again."""
    if space.dense or space.order is not None:
        return None
    found = restored(space.view, node, passed)
    if found is None:
        return None
    passed += found.passed
    if found.write is not None:
        space.followed.add(found.write)
    return found.rows, space.sort(found.order, dims)
