"""Quantisations of what is not normalised, by the largest value of each row or group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from ..declined import Declined, proved
from ..neighbours import DTYPES, readers, rearranges
from .core import Core
from .growth import QUANTISED, After
from .peaks import is_peak
from .region import grown
from .statistic import dims_of

_LIMIT = 24
_SIDES = ((True, After.PEAK), (False, After.PEAK))
_ROUNDING = ("round", "floor", "ceil", "trunc")


@register_pattern
class Quantisation(Pattern):
    """Fuse a quantisation whose scales are found while running, and what is pointwise before it.

        pointwise -> y,  largest of |y| in each row or group -> scale -> y / scale -> round or cast
        =>   fuser::norm

    Sound when: the largest value is of the last axes of y, and broadcast along them; what is
        rounded is made of y and of numbers of its row.
    Declines:   one scale for the whole tensor, scales along other axes or of other tensors;
        a gradient that is wanted.
    """

    id: ClassVar[str] = "quantise.dynamic"
    priority: ClassVar[int] = 3
    modest: ClassVar[bool] = True

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return (n for n in view.nodes if _is_largest(view, n) and _is_rounded(view, n))

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        return proved(lambda: _found(view, anchor, self.id), anchor)


def _found(view: GraphView, anchor: Node, pattern: str) -> Match:
    """The region around what has a largest value.

    Raises:
        Declined, Unproven: there is none.
    """
    op = view.op(anchor)
    rank = value(op.args["input"]).ndim
    dims = dims_of(op, rank)
    if dims is None or (rank > 1 and len(dims) == rank):
        raise Declined("there is one scale for the whole tensor, not one for each row", anchor)
    reason = Unproven("the largest value is of another tensor than what is rounded")
    for x in _rows(view, op.args["input"]):
        try:
            match = grown(view, Core.unchanged(x), pattern, _SIDES)
        except Unproven as error:
            reason = error
            continue
        if anchor in match.nodes and any(_rounds(view, node) for node in match.nodes):
            return match
        reason = Unproven("what is rounded is not made of a row and its largest value alone")
    raise reason


def _rows(view: GraphView, node: Node) -> Iterator[Node]:
    """What a largest value is made of, as far as others read it too; the nearest first."""
    for _ in range(_LIMIT):
        shared = len(readers(view, node)) > 1
        while rearranges(view, node):
            node = view.op(node).args["input"]
            shared = shared or len(readers(view, node)) > 1
        if shared:
            yield node
        given = [n for n in node.all_input_nodes if is_tensor(n)]
        if view.op(node).kind is not Kind.POINTWISE or len(given) != 1:
            return
        node = given[0]


def _is_largest(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    return op.name in ("amax", "max") and op.kind is Kind.REDUCE and is_tensor(op.args["input"])


def _is_rounded(view: GraphView, anchor: Node) -> bool:
    """Whether something that is made of a largest value is rounded."""
    pending, seen = [anchor], set[Node]()
    while pending and len(seen) < _LIMIT:
        node = pending.pop(0)
        seen.add(node)
        if _rounds(view, node):
            return True
        follows = [u for u in node.users if u not in seen and _follows(view, u)]
        pending += [u for u in follows if u not in pending]
    return False


def _follows(view: GraphView, node: Node) -> bool:
    return is_peak(view, node) or view.op(node).kind in (Kind.POINTWISE, Kind.VIEW)


def _rounds(view: GraphView, node: Node) -> bool:
    if not is_tensor(node):
        return False
    coarse = value(node).dtype in QUANTISED and value(node).dtype not in DTYPES
    return coarse or view.op(node).name in _ROUNDING
