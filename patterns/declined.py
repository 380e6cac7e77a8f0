"""How a walk through a graph ends where something cannot be proved."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.pattern import Decline, Match
from fuser.soundness import SIZE_OF_DATA
from fuser.torch_private import GuardOnDataDependentSymNode


class Declined(Exception):
    """Ends a walk with the reason and the node."""

    def __init__(self, reason: str, node: Node, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.node, self.hint = reason, node, hint


def proved(proof: Callable[[], Match | Decline | None], anchor: Node) -> Match | Decline | None:
    """What a proof comes to, with what could not be proved as a reason."""
    try:
        return proof()
    except Declined as error:
        return Decline(error.reason, error.node, hint=error.hint)
    except Unproven as error:
        return Decline(str(error), anchor)
    except GuardOnDataDependentSymNode:
        return Decline(SIZE_OF_DATA, anchor)


def spelled(node: Node) -> str:
    """A node's operator as users know it."""
    name = getattr(node.target, "__name__", None) or str(node.target)
    return f"`{name}`"
