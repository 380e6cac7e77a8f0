"""Experts whose rows come sorted, in runs, as where ranks exchange tokens.

h = grouped_mm(rows, up, ends)                          for e, run in enumerate(rows.split(counts)):
y = grouped_mm(activation(h), down, ends)                   y_e = activation(run @ up[e]) @ down[e]
                                                        y = cat([y_0, y_1, ...])

Which token chose which expert, and with what weight, is not to be seen, and not needed: a row goes
through the expert in whose run it is. Ends and counts may come from other ranks; nothing is
supposed of them. How many rows there are may be counted while running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from torch.fx import Node

from fuser.graph.axes import Unproven, fresh, leaves
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.pull import is_contraction
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from ..declined import Declined, proved
from .expert import MAX_NODES, ExpertWalk
from .products import grouped_arguments, is_grouped
from .region import LOCAL, in_runs
from .runs import ALONE, Runs, in_turn, splits
from .space import require

_ELEMENTWISE = (Kind.POINTWISE, Kind.VIEW, Kind.SLICE, Kind.DROPOUT)
_PARTS = ("chunk", "split", "tensor_split", "unbind", "getitem")
_COUNTED = ("topk", "sort", "argsort", "histc", "bincount", "one_hot", "searchsorted")


@register_pattern
class LocalExperts(Pattern):
    """Send each run of rows through its expert, all of them at once.

        y[run e] = expert_e(rows[run e])   =>   fuser::moe

    Sound when: products of an expert cut the same rows at the same ends, or all pieces of one split
    are put back in their order; experts differ by their tensors alone; nothing in between escapes.
    Declines:   an expert that mixes rows, or adds what differs between them.
    """

    id: ClassVar[str] = LOCAL
    priority: ClassVar[int] = -10

    def anchors(self, view: GraphView) -> Iterable[Node]:
        pieces = {len(split.sizes) for split in splits(view)}
        exchanged = any(map(_exchanges, view.nodes))
        for node in view.nodes:
            op = view.op(node)
            if is_grouped(node):
                found = _follows_another(view, node) and not _counted(view, node)
            elif op.name == "cat":
                tensors = op.args.get("tensors")
                found = isinstance(tensors, (list, tuple)) and len(tensors) in pieces
            else:
                found = exchanged and is_contraction(op) and _has_places(view, node)
            if found:
                yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        if is_grouped(anchor):
            return proved(lambda: _grouped(view, anchor), anchor)
        if view.op(anchor).name == "cat":
            return proved(lambda: in_turn(view, anchor), anchor)
        return Decline(
            "every expert has as many places as any other, and their rows are one batched product "
            "already: there is nothing to sort, and nothing to leave out",
            anchor,
        )


def _grouped(view: GraphView, anchor: Node) -> Match:
    """Experts by grouped products, of which the anchor is the last one."""
    out_dims, ends = fresh(value(anchor).shape, "o"), grouped_arguments(anchor)["offs"]
    count = value(ends).shape[0]
    require(isinstance(count, int), "the number of experts is a symbol", anchor)
    require(count > 1, ALONE, anchor)

    def found(end: Node) -> Match:
        space = Runs(view, value(end).dtype, leaves(out_dims[:1]), ends=ends)
        expert = ExpertWalk(space).run(end, out_dims)
        return in_runs(space, end, out_dims, [expert], {"ends": ends})

    plain = found(anchor)
    bias = next(iter(anchor.users)) if len(anchor.users) == 1 else anchor
    if view.op(bias).name == "add" and value(bias).shape == value(anchor).shape:
        with suppress(Declined, Unproven):
            return replace(found(bias), lesser=lambda: plain)
    return plain


def _follows_another(view: GraphView, node: Node) -> bool:
    """Whether the rows of a product are made, element by element, from another one's; that both
    have the same ends is for the proof."""
    given = grouped_arguments(node)
    rows, ends = given.get("input"), given.get("offs")
    return is_tensor(ends) and _reaches(rows, is_grouped, lambda n: _is_elementwise(view, n))


def _counted(view: GraphView, node: Node) -> bool:
    """Whether the ends of the runs were counted on this rank, in this graph: what there is to say
    of such rows is for the pattern of whole mixtures to say."""
    ends = grouped_arguments(node).get("offs")
    return _reaches(ends, lambda n: view.op(n).name in _COUNTED, lambda n: not _exchanges(n))


def _has_places(view: GraphView, node: Node) -> bool:
    """Whether a product is the last one of experts whose places were filled by other ranks."""
    batched = is_tensor(node) and value(node).ndim > 2

    def follows(source: Node) -> bool:
        return is_contraction(view.op(source)) and any(
            _reaches(rows, _exchanges, lambda n: _is_elementwise(view, n) or _waits(n))
            for rows in source.all_input_nodes
        )

    return batched and any(
        _reaches(rows, follows, lambda n: _is_elementwise(view, n)) for rows in node.all_input_nodes
    )


def _is_elementwise(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    return op.kind in _ELEMENTWISE or op.name in _PARTS


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
    return str(node.target).startswith("_c10d_functional") and not _waits(node)


def _waits(node: Node) -> bool:
    return "wait_tensor" in str(node.target)
