"""`x.add_(1)` and then `x` is `x = x.add_(1)` and then `x`: one spelling, which patterns follow.

An operator that writes in place returns what it wrote to, so whoever reads the tensor afterwards
may as well read the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from .ops import Kind, value
from .view import GraphView

_WRITERS = (Kind.POINTWISE, Kind.DROPOUT)
_ADDS_ROWS = ("index_add", "scatter_add")

Rebound = list[tuple[Node, Any, Any]]
"""Nodes that were changed, in order, with the arguments that they had."""


def rebind(view: GraphView) -> Rebound:
    """Make later readers of a tensor that is written to in place read the result of the write."""
    changed: Rebound = []
    for writer in view.nodes:
        op = view.op(writer)
        if not op.inplace or (op.kind not in _WRITERS and op.name not in _ADDS_ROWS):
            continue
        target = op.args.get("input")
        if not isinstance(target, Node) or not _is_itself(target, writer):
            continue
        for reader in list(target.users):
            if view.order[reader] > view.order[writer]:
                changed.append((reader, reader.args, reader.kwargs))
                _read_instead(reader, target, writer)
    return changed


def undo(changed: Rebound) -> None:
    """Give every node the arguments back that it had."""
    for node, args, kwargs in reversed(changed):
        node.args, node.kwargs = args, kwargs


def _is_itself(target: Node, writer: Node) -> bool:
    before, after = value(target), value(writer)
    return (
        isinstance(before, torch.Tensor)
        and isinstance(after, torch.Tensor)
        and before.shape == after.shape
        and before.dtype == after.dtype
    )


def _read_instead(reader: Node, old: Node, new: Node) -> None:
    def swap(node: Node) -> Node:
        return new if node is old else node

    reader.args, reader.kwargs = map_arg(reader.args, swap), map_arg(reader.kwargs, swap)
