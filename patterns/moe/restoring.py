"""Rows that were sorted by their experts and are put back, or added up where their tokens are.

rows[inverse]                           placed.index_copy(0, order, rows)
out.index_add(0, order // K, rows)      out.scatter_add(0, (order // K)[:, None].expand(...), rows)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Unproven, fresh, leaves, resolve, same_size
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

from ..neighbours import same_shape
from .arange import divided, repeated
from .filling import filled_with, is_fresh, put, writer
from .order import Order, ordered, picked, undone
from .space import selected

_ADDING = {"index_add", "scatter_add"}
_COPYING = {"index_copy", "scatter"}


@dataclass(frozen=True)
class Restored:
    """Rows in the order of their experts.

    Attributes:
        rows: them.
        order: which that is.
        passed: what else was made to put them back.
        write: the statement that did it in place, if it was one.
    """

    rows: Node
    order: Order
    passed: tuple[Node, ...] = ()
    write: Node | None = None


@dataclass(frozen=True)
class Added:
    """Rows that are added to a tensor where their tokens are.

    Attributes:
        base: what they are added to.
        rows: in the order of their experts.
        order: which that is.
        choices: how many rows each token has.
    """

    base: Node
    rows: Node
    order: Order
    choices: int


@dataclass(frozen=True)
class _Write:
    """`base[index] = rows`, or `base[index] += rows`, along the first dimension."""

    base: Node
    index: Node
    rows: Node
    adds: bool


def restored(view: GraphView, node: Node, passed: Sequence[Node] = ()) -> Restored | None:
    """The sorted rows that a node has in the order of choices again, before what was passed."""
    op = view.op(node)
    part = selected(op)
    if part is not None and not part.new:
        order = undone(view, part.index)
        return None if order is None else Restored(part.source, order)
    if op.name == "gather" and op.args.get("dim") == 0:
        index = lined(view, op.args["index"])
        order = None if index is None else undone(view, index)
        whole = value(op.args["input"]).shape == value(node).shape
        return None if order is None or not whole else Restored(op.args["input"], order)
    statement = writer(view, node, passed) if view.is_written(node) else None
    by = node if statement is None else statement
    write = _written(view, view.op(by), by)
    if write is None or not same_shape(write.base, write.rows):
        return None
    if not is_fresh(view, write.base) or (statement is not None and write.base is not node):
        return None
    if write.adds and filled_with(view, write.base, view.order[by]) != 0:
        return None
    order = ordered(view, write.index)
    return None if order is None else Restored(write.rows, order, (write.base, by), statement)


def added(view: GraphView, node: Node) -> Added | None:
    """Sorted rows that are added where their tokens are."""
    write = _written(view, view.op(node), node)
    if write is None or not write.adds or value(write.rows).ndim != 2:
        return None
    found = tokens_at(view, write.index)
    if found is None:
        return None
    order, choices = found
    tokens, rows = (to_expr(value(n).shape[0]) for n in (node, write.rows))
    if not same_size(tokens * choices, rows):
        return None
    return Added(write.base, write.rows, order, choices)


def _written(view: GraphView, op: Op, node: Node) -> _Write | None:
    if op.name in _ADDING | _COPYING:
        names = ("input", "index", "src" if op.name.startswith("scatter") else "source")
        base, index, rows = (op.args.get(name) for name in names)
        plain = op.args.get("alpha", 1) == 1 and op.args.get("reduce") is None
        if not (plain and is_tensor(base) and is_tensor(index) and is_tensor(rows)):
            return None
        first = type(op.args.get("dim")) is int and op.args["dim"] % value(base).ndim == 0
        if op.name.startswith("scatter"):
            whole = value(index).shape == value(rows).shape
            index = lined(view, index) if whole else None
        same = value(base).shape[1:] == value(rows).shape[1:]
        if index is None or not first or not same:
            return None
        return _Write(base, index, rows, op.name in _ADDING)
    found = put(view, node)
    if found is None:
        return None
    base, parts, rows = found
    index, *rest = parts
    whole = all(part is Ellipsis or part == slice(None) for part in rest)
    if not (whole and is_tensor(index) and is_tensor(rows)):
        return None
    return _Write(base, index, rows, bool(op.args.get("accumulate", False)))


def lined(view: GraphView, index: Any) -> Node | None:
    """The positions, in one dimension, of an index that is the same for all features."""
    if not is_tensor(index):
        return None
    node, dims = index, fresh(value(index).shape, "n")
    first = leaves(dims[:1])
    while view.op(node).kind is Kind.VIEW:
        try:
            node, dims = pull_view(view.op(node), node, dims)
        except Unproven:
            return None
    return node if resolve(dims) == (first,) else None


def tokens_at(view: GraphView, node: Node) -> tuple[Order, int] | None:
    """The order, and how many choices a token has, where a tensor has the token of each place."""
    node = _past_views(view, node)
    found = divided(view.op(node))
    if found is not None:
        order = ordered(view, found[0])
        return None if order is None else (order, found[1])
    taken = picked(view.op(node))
    order = None if taken is None else ordered(view, taken[1])
    if taken is None or order is None:
        return None
    choices = repeated(view, taken[0])
    return None if choices is None else (order, choices)


def _past_views(view: GraphView, node: Node) -> Node:
    """The tensor in one dimension that a node is, in one dimension as well."""
    op = view.op(node)
    while op.kind is Kind.VIEW and op.name in ("reshape", "flatten", "squeeze", "unsqueeze"):
        node = op.args["input"]
        op = view.op(node)
    return node
