"""Operators that change no number of a tensor."""

from __future__ import annotations

from torch.fx import Node

from fuser.graph.ops import Kind
from fuser.graph.view import GraphView

COPIES = {"clone", "contiguous", "alias"}
CASTS = {"to", "type_as", "type", "float", "half", "bfloat16"}


def arranged(view: GraphView, node: Node) -> set[Node]:
    """What is only another arrangement of a tensor, or a part of it."""
    found: set[Node] = set()
    pending = list(node.users)
    while pending:
        user = pending.pop()
        op = view.op(user)
        cut = op.name in (*COPIES, "select", "unbind", "chunk", "split")
        part = getattr(user.target, "__name__", "") == "getitem"
        if user not in found and (cut or part or op.kind in (Kind.VIEW, Kind.SLICE)):
            found.add(user)
            pending += user.users
    return found
