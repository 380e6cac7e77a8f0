"""Choices sorted by their experts: which place each has, and how that is undone.

sorted, order = ids.sort()              ids are the choices, token by token
rows = x[order // K]                    ... products of neighbouring rows ...
rows[inverse of order]                  token by token again
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, same_size
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

GROUPED = ("_grouped_mm", "grouped_mm", "grouped_mm_fallback")
"""Products of runs of rows with a matrix each: torch's, and that of transformers for dtypes which
torch's does not take."""


@dataclass(frozen=True)
class Order:
    """Rows in the order of their experts.

    Attributes:
        order: the number of the choice at each place.
        ids: the expert of each choice, in one dimension.
        row: the axis of the places.
    """

    order: Node
    ids: Node
    row: Dim

    def holds_ids(self, view: GraphView, node: Node) -> bool:
        """Whether a tensor has the expert of each place."""
        return pair(view, node, 0) is self.ids

    def holds_order(self, node: Node) -> bool:
        """Whether a tensor has the number of the choice at each place."""
        return node is self.order

    def holds_tokens(self, view: GraphView, node: Node, choices: int) -> bool:
        """Whether a tensor has the number of the token at each place."""
        op = view.op(node)
        if op.name not in ("floor_divide", "div") or op.args.get("other") != choices:
            return False
        whole = op.name == "floor_divide" or op.args.get("rounding_mode") in ("floor", "trunc")
        return whole and is_tensor(op.args.get("input")) and op.args["input"] is self.order

    def holds_ends(self, view: GraphView, node: Node, experts: int) -> bool:
        """Whether a tensor has, for each expert, the place after its last one."""
        op = view.op(node)
        if op.name in ("to", "int") and is_tensor(op.args.get("input")):
            return self.holds_ends(view, op.args["input"], experts)
        if op.name != "cumsum" or op.args.get("dim") not in (0, -1):
            return False
        return self._counts(view, op.args["input"], experts)

    def _counts(self, view: GraphView, node: Node, experts: int) -> bool:
        op = view.op(node)
        if op.name in ("to", "int", "long") and is_tensor(op.args.get("input")):
            return self._counts(view, op.args["input"], experts)
        if op.name == "bincount":
            enough = op.args.get("minlength") == experts and op.args.get("weights") is None
            return enough and self._ids(view, op.args["input"])
        if op.name != "histc":
            return False
        ends = (op.args.get("bins"), op.args.get("min"), op.args.get("max"))
        return ends == (experts, 0, experts - 1) and self._ids(view, op.args["input"])

    def _ids(self, view: GraphView, node: Node) -> bool:
        op = view.op(node)
        if op.name in ("to", "float", "int", "long") and is_tensor(op.args.get("input")):
            return self._ids(view, op.args["input"])
        return node is self.ids or self.holds_ids(view, node)


def undone(view: GraphView, node: Node) -> Order | None:
    """The order that an index undoes: `rows[index]` are in the order of the choices again."""
    order = _inverted(view, node)
    ids = None if order is None else sorting(view, order)
    if order is None or ids is None or value(ids).ndim != 1:
        return None
    return Order(order, ids, ())


def sorting(view: GraphView, node: Node) -> Node | None:
    """What a tensor is the sorted order of."""
    op = view.op(node)
    if op.name == "argsort":
        return _ascending(op.args)
    return pair(view, node, 1)


def pair(view: GraphView, node: Node, which: int) -> Node | None:
    """What was sorted, where a node is the values (0) or the order (1)."""
    source = node.args[0] if node.args else None
    target = getattr(node.target, "__name__", "")
    named = {
        ("getitem", 0): 0,
        ("getitem", 1): 1,
        ("getattr", "values"): 0,
        ("getattr", "indices"): 1,
    }
    if not isinstance(source, Node) or len(node.args) < 2:
        return None
    if (
        not isinstance(node.args[1], (int, str))
        or named.get((target, node.args[1])) != which
        or view.op(source).name != "sort"
    ):
        return None
    return _ascending(view.op(source).args)


def _ascending(args: dict[str, object]) -> Node | None:
    source = args.get("input")
    plain = args.get("descending", False) is False and args.get("dim", -1) in (0, -1)
    return source if isinstance(source, Node) and plain else None


def _inverted(view: GraphView, node: Node) -> Node | None:
    """The order of which a tensor is the inverse: its own order, or places written at it."""
    found = sorting(view, node)
    if found is not None:
        return found
    if getattr(node.target, "__name__", str(node.target)) != "empty_like":
        return None
    writes = [n for i, target in view.mutations if target is node for n in (view.nodes[i],)]
    if len(writes) != 1 or getattr(writes[0].target, "__name__", "") != "setitem":
        return None
    _, index, places = writes[0].args
    if not isinstance(index, Node) or not isinstance(places, Node):
        return None
    counted = getattr(places.target, "__name__", "") == "arange" and len(places.args) == 1
    sizes = [to_expr(value(n).shape[0]) for n in (node, index, places) if value(n).ndim == 1]
    same = len(sizes) == 3 and all(same_size(size, sizes[0]) for size in sizes)
    whole = value(index).dtype is value(places).dtype is torch.int64
    return index if counted and same and whole else None
