"""Chains of additions: what they add up, and what they are added to."""

from __future__ import annotations

from torch.fx import Node

from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView

from .space import require

IN_PLACE = "experts are added in place to what something else has made"


def terms(view: GraphView, node: Node) -> list[Node]:
    """What a chain of additions adds up, first term first."""
    found: list[Node] = []
    pending = [node]
    while pending:
        current = pending.pop()
        if current is node or (len(current.users) == 1 and shaped_like(current, node)):
            inputs = added_by(view, current)
            if inputs is not None:
                pending += reversed(inputs)
                continue
        found.append(current)
    return found


def added_by(view: GraphView, node: Node) -> list[Node] | None:
    """The tensors that an addition adds up; Python's `sum` adds the first one to 0."""
    op = view.op(node)
    if op.name != "add" or op.args.get("alpha", 1) != 1:
        return None
    inputs = [op.args.get("input"), op.args.get("other")]
    tensors = [n for n in inputs if is_tensor(n)]
    return tensors if all(is_tensor(n) or n == 0 for n in inputs) else None


def shaped_like(node: Node, other: Node) -> bool:
    return value(node).shape == value(other).shape


def is_inner(view: GraphView, node: Node) -> bool:
    """Whether a node is a part of a longer chain, which was looked at before."""
    ops = [view.op(user) for user in node.users if is_tensor(user) and shaped_like(user, node)]
    if any(op.name == "where" and node in (op.args["input"], op.args["other"]) for op in ops):
        return True
    if len(node.users) != 1:
        return False
    (user,) = node.users
    return added_by(view, user) is not None and shaped_like(node, user)


def smallest(view: GraphView, node: Node, wanted: set[Node]) -> Node:
    """The first addition of a chain with which all the wanted terms are added up."""
    while True:
        inputs = added_by(view, node) or []
        whole = [
            n for n in inputs if added_by(view, n) is not None and wanted <= set(terms(view, n))
        ]
        if not whole or len(whole[0].users) != 1:
            return node
        node = whole[0]


def is_zero(view: GraphView, node: Node) -> bool:
    """Whether a term is what a sum starts from: zeros that nobody else writes to."""
    name = str(getattr(node.target, "__name__", node.target))
    return name in ("zeros", "zeros_like", "new_zeros") and len(node.users) == 1


def beneath(view: GraphView, term: Node, passed: set[Node]) -> Node:
    """What experts are added to: where that is a copy that was made for it, what was copied.

    Raises:
        Declined: they are added to it in place, which somebody else may see.
    """
    (user,) = term.users if len(term.users) == 1 else (None,)
    op = view.op(term)
    if user in passed and op.name == "clone" and is_tensor(op.args.get("input")):
        passed.add(term)
        return op.args["input"]
    key = view.storages.get(term)
    written = [n for n in passed if view.op(n).inplace and view.storages.get(n) == key]
    require(not written, IN_PLACE, term, "add them to zeros, or to a copy")
    return term


def additions(view: GraphView, node: Node, found: list[Node]) -> set[Node]:
    """The additions of a chain with these terms."""
    known, pending = set(found), [node]
    passed: set[Node] = set()
    while pending:
        current = pending.pop()
        if current not in known and current not in passed:
            passed.add(current)
            pending += added_by(view, current) or []
    return passed
