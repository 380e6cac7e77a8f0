"""Expressions that a graph computes twice."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from .ops import Kind
from .view import GraphView

_ONCE = (Kind.OTHER, Kind.DROPOUT, Kind.ATTENTION)
"""Operators that may draw random numbers, or of which nothing is known."""


def twins(view: GraphView, one: Any, other: Any) -> frozenset[Node] | None:
    """The nodes by which `other` computes again what `one` does; None where it is not the same.

    Args:
        view: the graph of both.
        one, other: nodes, or arguments of nodes.
    """
    if one is other:
        return frozenset()
    if isinstance(one, Node) and isinstance(other, Node):
        return _of_nodes(view, one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return _of_all(view, one, other)
    same = type(one) is type(other) and not isinstance(one, Node) and one == other
    return frozenset() if same else None


def _of_nodes(view: GraphView, one: Node, other: Node) -> frozenset[Node] | None:
    called = one.op == other.op and one.op in ("call_function", "call_method")
    if not called or one.target != other.target or one.kwargs.keys() != other.kwargs.keys():
        return None
    op = view.op(one)
    if op.kind in _ONCE or op.inplace or view.is_written(one) or view.is_written(other):
        return None
    named = [node.kwargs[name] for node in (one, other) for name in one.kwargs]
    half = len(named) // 2
    found = _of_all(view, (*one.args, *named[:half]), (*other.args, *named[half:]))
    return None if found is None else found | {other}


def _of_all(view: GraphView, ones: Any, others: Any) -> frozenset[Node] | None:
    found: frozenset[Node] = frozenset()
    if len(ones) != len(others):
        return None
    for pair in zip(ones, others, strict=True):
        nodes = twins(view, *pair)
        if nodes is None:
            return None
        found |= nodes
    return found
