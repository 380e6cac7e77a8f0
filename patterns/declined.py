"""How a walk through a graph ends where something cannot be proved."""

from __future__ import annotations

from torch.fx import Node


class Declined(Exception):
    """Ends a walk with the reason and the node."""

    def __init__(self, reason: str, node: Node, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.node, self.hint = reason, node, hint


def spelled(node: Node) -> str:
    """A node's operator as users know it."""
    name = getattr(node.target, "__name__", None) or str(node.target)
    return f"`{name}`"
