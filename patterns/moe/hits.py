"""A loop over the experts that were hit, in a graph as a loop over all of them.

hit = (mask.sum((1, 2)) > 0).nonzero()          hit = indices.unique()

`fuser.turns` marks where such a loop was captured with all its turns. That is what eager computes
if an expert that is not in `hit` has no tokens, and if nothing but the region happens in a turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, fresh, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Match
from fuser.turns import MARKS, begin, over, turn

from ..declined import Declined
from .choices import experts_among
from .masks import Chosen, hot, peeled
from .selection import Coordinate, coordinate, gives_positions, sizes_of
from .space import Place, require
from .writes import Write

_ABOVE = {"gt": (0,), "ne": (0,), "ge": (1,)}
_UNKNOWN = "the experts that a loop runs over may be others than those that tokens chose"


@dataclass(frozen=True)
class Loop:
    """Where a loop stands in a graph.

    Attributes:
        hit: what it runs over.
        marks: all that tells of it.
        first, last: positions of its begin and its end.
        turns: positions at which turns begin; number i is that of expert i.
    """

    hit: Node
    marks: tuple[Node, ...]
    first: int
    last: int
    turns: tuple[int, ...]


def with_turns(
    view: GraphView, match: Match, writes: Sequence[Write], chosen: Sequence[Chosen]
) -> Match:
    """A region with the marks of the loop that its writes are in, if there are any.

    Args:
        view: the graph.
        match: the region.
        writes: of the experts' rows.
        chosen: for each of them the expert.

    Raises:
        Declined: turns that were captured may be others than those that eager takes.
    """
    for loop in _loops(view):
        inside = [w for w in writes if loop.first < view.order[w.node] < loop.last]
        if inside:
            require(len(inside) == len(writes), "some experts are not in the loop", loop.hit)
            _require_numbers(view, loop, writes, chosen)
            nodes = {*match.nodes, *loop.marks, *_told(view, loop, chosen[0])}
            match = replace(match, nodes=frozenset(_with_idle(view, match, loop, nodes)))
    return match


def _loops(view: GraphView) -> list[Loop]:
    marks = [node for node in view.nodes if node.target in MARKS]
    found: list[Loop] = []
    for at, start in enumerate(marks):
        if start.target is not begin:
            continue
        own = [start]
        for mark in marks[at + 1 :]:
            if mark.args[0] is not start.args[0] or mark.target is begin:
                break
            own.append(mark)
        hit, turns = start.args[0], tuple(view.order[m] for m in own if m.target is turn)
        numbers = [m.args[1] for m in own if m.target is turn]
        ends = own[-1].target is over and numbers == list(range(len(numbers)))
        if ends and len(own) == len(turns) + 2 and isinstance(hit, Node):
            found.append(Loop(hit, tuple(own), view.order[start], view.order[own[-1]], turns))
    return found


def _require_numbers(
    view: GraphView, loop: Loop, writes: Sequence[Write], chosen: Sequence[Chosen]
) -> None:
    """Each turn is that of the expert whose number it has.

    Raises:
        Declined: it is not.
    """
    require(
        len(writes) == len(loop.turns), "a turn writes more than the rows of one expert", loop.hit
    )
    for write, known in zip(writes, chosen, strict=True):
        number = sum(start < view.order[write.node] for start in loop.turns) - 1
        require(known.expert == number, "a turn is not that of the expert that was hit", write.node)


def _told(view: GraphView, loop: Loop, chosen: Chosen) -> set[Node]:
    """What tells which experts were hit, if those are all that any token chose.

    Raises:
        Declined: others may have tokens too.
    """
    if getattr(loop.hit.target, "__name__", loop.hit.target) == "unique":
        (index,) = loop.hit.args if len(loop.hit.args) == 1 else (None,)
        if not isinstance(index, Node) or loop.hit.kwargs:
            raise Declined(_UNKNOWN, loop.hit)
        indices = peeled(view, index, fresh(value(index).shape, "i"))
        known = experts_among(view, indices.node) == len(loop.turns)
        require(known and indices.node is chosen.indices.node, _UNKNOWN, loop.hit)
        return _alone(view, {loop.hit}, loop, len(loop.turns))
    found = _positions(view, loop.hit)
    if found is None or value(found.mask).ndim != 1:
        raise Declined(_UNKNOWN, loop.hit)
    experts = fresh(value(found.mask).shape, "e")[0]
    chain = {*found.passed}
    place = _summed(view, found.mask, experts, chain)
    known = hot(view, place)
    if known is None:
        raise Declined(_UNKNOWN, loop.hit)
    indices, kept = known
    same = indices.node is chosen.indices.node
    require(same and (kept is None or _is_kept(kept, chosen)), _UNKNOWN, loop.hit)
    return _alone(view, chain, loop, len(loop.turns))


def _positions(view: GraphView, hit: Node) -> Coordinate | None:
    """Of which mask something holds the positions, each as a number or as a row of one."""
    mask = hit.args[0] if hit.args else None
    if value(hit).ndim == 2 and gives_positions(hit) and is_tensor(mask):
        return Coordinate(mask, 0, (hit,))
    return coordinate(view, hit)


def _is_kept(kept: Place, chosen: Chosen) -> bool:
    """Whether what else rules a choice out rules it out in the turns too."""
    return chosen.kept is not None and chosen.kept.node is kept.node


def _summed(view: GraphView, node: Node, experts: Dim, chain: set[Node]) -> Place:
    """The mask of which a vector tells for each expert whether it is true anywhere."""
    dims: Dims = (experts,)
    compared = False
    while not view.is_written(node):
        op = view.op(node)
        source, other = op.args.get("input"), op.args.get("other")
        if op.name in _ABOVE and type(other) is int and other in _ABOVE[op.name] and not compared:
            compared = True
        elif op.name in ("sum", "any") and op.args.get("dtype") is None:
            dims = _before(op.args.get("dim"), value(source).ndim, source, dims)
        else:
            break
        chain.add(node)
        assert isinstance(source, Node)
        node = source
    return Place(node, resolve(dims), experts)


def _before(dim: object, rank: int, source: object, dims: Dims) -> Dims:
    """Axes of what is added up, without the dimensions kept.

    Raises:
        Declined: not along dimensions that are known.
    """
    assert isinstance(source, Node)
    given = dim if isinstance(dim, (tuple, list)) else (dim,)
    numbers = sorted(d % rank for d in given if type(d) is int)
    require(len(numbers) == len(given) and len(dims) == rank - len(numbers), _UNKNOWN, source)
    own = list(dims)
    for at in numbers:
        own.insert(at, fresh((value(source).shape[at],), "summed")[0])
    return tuple(own)


def _alone(view: GraphView, chain: set[Node], loop: Loop, most: int) -> set[Node]:
    """The nodes of a chain that nobody else reads, and their sizes."""
    sizes = sizes_of(view, chain, most)
    own, before = {*chain, *sizes}, 0
    while before != len(own):
        before = len(own)
        own = {n for n in own if all(user in own or user in loop.marks for user in n.users)}
    return own


def _with_idle(view: GraphView, match: Match, loop: Loop, nodes: set[Node]) -> set[Node]:
    """A region, and what only it reads within the loop.

    Raises:
        Declined: something else happens there.
    """
    operands = {o.node for call in match.calls for o in call.operands.values()}
    inside = view.nodes[loop.first : loop.last]
    for node in reversed(inside):
        if node in nodes or node.op in ("placeholder", "get_attr"):
            continue
        require(_is_pure(view, node), "a turn does more than adding the rows of an expert", node)
        later = any(user not in nodes and view.order[user] > loop.last for user in node.users)
        require(not later, "what a turn computes is read after the loop", node)
        if node not in operands and all(user in nodes for user in node.users):
            nodes.add(node)
    return nodes


def _is_pure(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    known = op.kind is not Kind.OTHER or node.target == "item"
    return known and not op.inplace and not draws(node, op)
