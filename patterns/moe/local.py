"""Experts that multiply rows which were sorted for them elsewhere, as on each of several ranks.

Nothing is rewritten: which token chose which expert, and with what weight, is not in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch.fx import Node

from fuser.graph.ops import Kind
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from .expert import MAX_NODES
from .products import is_grouped

_ELEMENTWISE = (Kind.POINTWISE, Kind.VIEW, Kind.SLICE, Kind.DROPOUT)
_PARTS = ("chunk", "split", "tensor_split", "unbind", "getitem")
_COUNTED = ("topk", "sort", "argsort", "histc", "bincount", "one_hot", "searchsorted")


@register_pattern
class LocalExperts(Pattern):
    """Products of runs of rows, one after the other, of rows that nobody sorted in this graph.

    Sound when: never; it is there to say why a part of a mixture stays as it is.
    Declines:   always.
    """

    id: ClassVar[str] = "moe.local"
    priority: ClassVar[int] = -10

    def anchors(self, view: GraphView) -> Iterable[Node]:
        for node in view.nodes:
            if is_grouped(node) and _follows_another(view, node) and not _counted(view, node):
                yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        return Decline(
            "rows come sorted by expert, and which token chose which expert, and with what weight, "
            "is not to be seen from here",
            anchor,
            hint="so it is where ranks exchange tokens: the products stay PyTorch's; elsewhere, "
            "sort, multiply and add up in one graph",
        )


def _follows_another(view: GraphView, node: Node) -> bool:
    """Whether the rows of a product are made, element by element, from another with its ends."""
    rows, ends = _given(node)

    def wanted(source: Node) -> bool:
        return is_grouped(source) and _given(source)[1] is ends

    def through(source: Node) -> bool:
        op = view.op(source)
        return op.kind in _ELEMENTWISE or op.name in _PARTS

    return _reaches(rows, wanted, through)


def _counted(view: GraphView, node: Node) -> bool:
    """Whether the ends of the runs were counted on this rank, in this graph."""
    _, ends = _given(node)
    return _reaches(ends, lambda n: view.op(n).name in _COUNTED, lambda n: not _exchanges(n))


def _reaches(start: Any, wanted: Callable[[Node], bool], through: Callable[[Node], bool]) -> bool:
    """Whether a node is one that is wanted, or made from one by such as may be passed through."""
    pending, seen = [start], set[Node]()
    while pending and len(seen) < MAX_NODES:
        node = pending.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        if wanted(node):
            return True
        seen.add(node)
        if through(node):
            pending += node.all_input_nodes
    return False


def _exchanges(node: Node) -> bool:
    """Whether a node is a collective, which gives what other ranks have."""
    return str(node.target).startswith("_c10d_functional")


def _given(node: Node) -> tuple[Any, Any]:
    """Rows and the ends of their runs."""
    given = dict(zip(("input", "weight", "offs"), node.args, strict=False)) | dict(node.kwargs)
    return given.get("input"), given.get("offs")
