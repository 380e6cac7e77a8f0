"""Rotary embeddings of what is not normalised, or not right before: pairs and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.ops import Kind, is_tensor
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from ..captured import loses_nothing
from ..declined import Declined
from ..neighbours import readers, rearranges
from . import pairs
from .core import Core
from .growth import After
from .region import grown
from .sections import row_of, rows_around

_LIMIT = 16
_SIDES = ((False, After.PAIRS),)


@register_pattern
class Rotation(Pattern):
    """Fuse a rotary embedding, and whatever else is computed of pairs.

        halves or neighbours of x -> pointwise -> cat, stack, complex numbers, matrices -> pointwise
        =>   fuser::norm

    Sound when: every result has both members of all pairs; each is what was computed of it, so that
        nothing need be a rotation.
    Declines:   members of members; a member that is read elsewhere.
    """

    id: ClassVar[str] = "rope.rotation"
    priority: ClassVar[int] = 4
    modest: ClassVar[bool] = True

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return (node for node in view.nodes if _puts_together(view, node))

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        declined: Decline | None = None
        sources, crosses = _sources(view, anchor)
        for x in sources:
            try:
                found = grown(view, Core.unchanged(x), self.id, _SIDES)
            except (Declined, Unproven) as error:
                if crosses:
                    declined = declined or Decline(str(error), anchor)
                continue
            if anchor in found.nodes and _computes(found):
                return found
        return declined


def _computes(found: Match) -> bool:
    """Whether both members are read, and anything is more than moved."""
    (call,) = found.calls
    read = {name for program in call.spec.after for name in program.inputs}
    computed = any(node.op.startswith("call") for p in call.spec.after for node in p.graph.nodes)
    return computed and read >= {f"n{member}" for member in call.spec.members}


def _puts_together(view: GraphView, node: Node) -> bool:
    if not is_tensor(node):
        return False
    real = view.op(node).name == "view_as_real" or bool(_added(view, node))
    real = real or row_of(view, node) is not None
    return real or _whole(view, node) is not None or bool(_widened(view, node))


def _widened(view: GraphView, node: Node) -> list[Node]:
    """Members that an operator reads, each of which is in both members of its result."""
    given = [n for n in node.all_input_nodes if is_tensor(n) and pairs.widens(view, node, [n])]
    return [n for n in given if pairs.member(view, n) is not None]


def _added(view: GraphView, node: Node) -> list[Node]:
    """What has the members that are added up, each times a number of its own."""
    if pairs.added(view, node) is None:
        return []
    product = view.op(node).args["input"]
    return [n for n in product.all_input_nodes if is_tensor(n) and pairs.widens(view, product, [n])]


def _whole(view: GraphView, node: Node) -> pairs.Both | None:
    return pairs.both(view, node) or pairs.written(view, node)


def _sources(view: GraphView, anchor: Node) -> tuple[list[Node], bool]:
    """The tensors of which a member is in either part of what is put together; and whether one is
    where the other was. Else a half is rotated and put back before the one that is not."""
    row = row_of(view, anchor)
    if row is not None:
        return [*dict.fromkeys([_top(view, row.source), row.source])], False
    whole = _whole(view, anchor)
    parts = _widened(view, anchor) if whole is None else whole.parts
    parts = parts or ((anchor,) if _added(view, anchor) else (view.op(anchor).args["input"],))
    found = [_divided(view, part) for part in parts]
    common = [n for n in found[0] if all(n in each for each in found)]
    crosses = any(each[n] != {i} for n in common for i, each in enumerate(found))
    tops = [_top(view, n) for n in common]  # of which another dimension may be the last one
    above = [_top(view, view.op(n).args["input"]) for n in common if _is_same(view, n)]
    every = dict.fromkeys([*tops, *common, *above])
    rows = [row.source for n in every for row in rows_around(view, n).values()]
    return [*dict.fromkeys([*map(partial(_top, view), rows), *rows, *every])], crosses


def _top(view: GraphView, node: Node) -> Node:
    """What a tensor is a view or a copy of, as far as nobody else reads what is between."""
    while _is_same(view, node) and len(readers(view, node)) == 1:
        node = view.op(node).args["input"]
    return node


def _is_same(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    return rearranges(view, node) or (op.kind is Kind.POINTWISE and loses_nothing(op, node))


def _divided(view: GraphView, node: Node) -> dict[Node, set[int]]:
    """The tensors that members were taken of, some way above, and which members."""
    pending, seen, found = [node], set[Node](), dict[Node, set[int]]()
    while pending and len(seen) < _LIMIT:
        node = pending.pop()
        seen.add(node)
        op, part = view.op(node), pairs.member(view, node)
        if part is not None:
            found.setdefault(part.source, set()).add(part.index)
        elif op.name == "view_as_complex":
            found[op.args["input"]] = {0, 1}
        elif _added(view, node):
            found |= {n: {0, 1} for n in _added(view, node)}
        elif op.kind is Kind.POINTWISE or rearranges(view, node):
            pending += [n for n in node.all_input_nodes if is_tensor(n) and n not in seen][::-1]
    return found
