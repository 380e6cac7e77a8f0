"""What is written into a tensor of one number before anybody reads it.

dense = zeros(T, E)
dense.scatter_(1, indices, weights)     dense[arange(T)[:, None], indices] = weights
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from fuser.graph.ops import Kind, is_tensor
from fuser.graph.view import GraphView

_NUMBERS = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0,
            "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}  # fmt: skip
_FILL_AT = {"full": 1, "new_full": 2, "full_like": 1}


def filled_with(view: GraphView, node: Node, before: int) -> float | None:
    """The number that all elements of a tensor are, up to a position in the graph."""
    if view.mutated_between(node, view.order[node] + 1, before) is not None:
        return None
    op = view.op(node)
    if op.kind is Kind.VIEW and not op.inplace:
        return filled_with(view, op.args["input"], before)
    name = str(getattr(node.target, "__name__", node.target))
    if name in _NUMBERS:
        return _NUMBERS[name]
    if name not in _FILL_AT:
        return None
    at = _FILL_AT[name]
    found = node.kwargs.get("fill_value", node.args[at] if len(node.args) > at else None)
    return float(found) if isinstance(found, (bool, int, float)) else None


def is_fresh(view: GraphView, node: Node) -> bool:
    """Whether a tensor was made to be written to."""
    name = str(getattr(node.target, "__name__", node.target))
    return name in {*_NUMBERS, *_FILL_AT, "empty", "empty_like", "new_empty"}


def writer(
    view: GraphView, node: Node, passed: Sequence[Node] = (), reader: Node | None = None
) -> Node | None:
    """The one operator that writes to a tensor, before a reader, or before all others that read it;
    but for those that were passed on the way to it, which change what it has written."""
    key = view.storages.get(node)
    found = [view.nodes[i] for i, n in view.mutations if n is node or view.storages.get(n) == key]
    found = [write for write in found if write not in passed]
    if len(found) != 1 or found[0].all_input_nodes.count(node) != 1:
        return None
    position = view.order[found[0]]
    others = [user for user in node.users if user is not found[0]] if reader is None else [reader]
    return found[0] if all(view.order[user] > position for user in others) else None


def put(view: GraphView, node: Node) -> tuple[Node, tuple[Any, ...], Any] | None:
    """`(target, index, values)` of a statement `target[index] = values`, or of `index_put`."""
    if node.target is operator.setitem:
        target, index, values = node.args
    else:
        op = view.op(node)
        if op.name != "index_put":
            return None
        target, index, values = (op.args.get(name) for name in ("input", "index", "values"))
    parts = tuple(index) if isinstance(index, (tuple, list)) else (index,)
    return (target, parts, values) if is_tensor(target) else None
