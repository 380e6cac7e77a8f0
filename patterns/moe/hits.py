"""What eager does only for experts with tokens, and a graph does for all of them.

for e in (mask.sum((1, 2)) > 0).nonzero(): ...          for e in indices.unique(): ...
if (indices == e).any(): ...                            if idx.numel() == 0: continue

`fuser.turns` marks where such a part of a program was captured. It is what eager computes if an
expert that is left out has no tokens, and if nothing but the region happens there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Size, fresh, resolve
from fuser.graph.ops import Op, is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Match
from fuser.torch_private import to_expr

from ..declined import Declined
from .choices import experts_among
from .masks import Chosen, hot, peeled
from .masks import told as told_by
from .numbers import holds_counts, numbers_of, with_numbers
from .selection import Coordinate, coordinate, gives_positions, sizes_of
from .space import Place, require
from .supposed import (
    LEFT,
    UNKNOWN,
    Part,
    alone,
    is_left,
    parts,
    sizes_behind,
    tells_rows,
    with_idle,
)
from .writes import Write

_ABOVE = (("gt", 0), ("ne", 0), ("ge", 1))
_NONE = (("le", 0), ("eq", 0), ("lt", 1))


def with_parts(
    view: GraphView, match: Match, writes: Sequence[Write], chosen: Sequence[Chosen], most: Size
) -> Match:
    """A region with the marks of the parts that its writes are in, if there are any.

    Args:
        view: the graph.
        match: the region.
        writes: of the experts' rows.
        chosen: for each of them the expert.
        most: rows of an expert.

    Raises:
        Declined: what was captured may be other than what eager does.
    """
    for part in parts(view):
        pairs = zip(writes, chosen, strict=True)
        inside = [p for p in pairs if part.first < view.order[p[0].node] < part.last]
        inside = inside or _behind(match, part, writes, chosen)
        if not inside:
            continue
        if part.taken is None:
            require(len(inside) == len(writes), "some experts are not in the loop", part.hit)
            _require_numbers(view, part, writes, chosen)
            told = _told(view, part, chosen[0])
        else:
            require(len(inside) == 1, "a condition is not that of one expert", part.hit)
            told = _told_alone(view, part, *inside[0])
        for before, now in part.left:
            empty = part.taken is not None and is_left(_count(inside[0][0]), before, now)
            require(empty or _is_added(view, inside, before, now), LEFT, part.marks[-1])
        nodes = {*match.nodes, *part.marks, *told}
        nodes |= sizes_of(view, nodes, most)
        match = replace(match, nodes=frozenset(with_idle(view, match, part, nodes)))
    operands = [o.node for call in match.calls for o in call.operands.values()]
    nodes = with_numbers(view, {*match.nodes}, chosen[0].indices.node, operands, most)
    return replace(match, nodes=frozenset(nodes))


def _behind(
    match: Match, part: Part, writes: Sequence[Write], chosen: Sequence[Chosen]
) -> list[tuple[Write, Chosen]]:
    """Of what a part is that ends before its rows are written: an expert behind a condition."""
    if not any(now in match.nodes for _, now in part.left):
        return []
    pairs = zip(writes, chosen, strict=True)
    return [p for p in pairs if all(is_left(_count(p[0]), *each) for each in part.left)]


def _count(write: Write) -> Any:
    """How many rows are written."""
    return to_expr(value(write.rows).shape[0])


def _is_added(
    view: GraphView, inside: Sequence[tuple[Write, Chosen]], before: Any, now: Any
) -> bool:
    """Whether one tensor is another with the rows of a part added up onto it."""
    first, last = inside[0][0].node, inside[-1][0].node
    return now is last and view.op(first).args.get("input") is before


def _told_alone(view: GraphView, part: Part, write: Write, chosen: Chosen) -> set[Node]:
    """What tells whether an expert has tokens, if that is the one whose rows are written.

    Raises:
        Declined: it may tell something else.
    """
    condition = value(part.hit)
    if not isinstance(condition, torch.Tensor):
        sizes = sizes_behind(part.hit)
        counted = [read[chosen.expert] for read in numbers_of(view, chosen.indices.node)]
        known = any(
            tells_rows(to_expr(condition), rows, part.taken) for rows in (_count(write), *counted)
        )
        require(known, UNKNOWN, part.hit)
        return alone(view, sizes, part, 0)
    chain = set[Node]()
    mask = _counted(view, part.hit, chain, bool(part.taken))
    known = told_by(view, mask, fresh(value(mask).shape, "m"))
    same = known is not None and known.expert == chosen.expert
    require(same, UNKNOWN, part.hit)
    assert known is not None
    require(known.indices.node is chosen.indices.node, UNKNOWN, part.hit)
    kept, own = known.kept, chosen.kept
    alike = kept is None or (own is not None and own.node is kept.node)
    require(alike, UNKNOWN, part.hit)
    return alone(view, chain, part, 0)


def _require_numbers(
    view: GraphView, part: Part, writes: Sequence[Write], chosen: Sequence[Chosen]
) -> None:
    """Each turn is that of the expert whose number it has.

    Raises:
        Declined: it is not.
    """
    require(
        len(writes) == len(part.turns), "a turn writes more than the rows of one expert", part.hit
    )
    for write, known in zip(writes, chosen, strict=True):
        number = sum(start < view.order[write.node] for start in part.turns) - 1
        require(known.expert == number, "a turn is not that of the expert that was hit", write.node)


def _told(view: GraphView, part: Part, chosen: Chosen) -> set[Node]:
    """What tells which experts were hit, if those are all that any token chose.

    Raises:
        Declined: others may have tokens too.
    """
    if getattr(part.hit.target, "__name__", part.hit.target) == "unique":
        (index,) = part.hit.args if len(part.hit.args) == 1 else (None,)
        if not isinstance(index, Node) or part.hit.kwargs:
            raise Declined(UNKNOWN, part.hit)
        indices = peeled(view, index, fresh(value(index).shape, "i"))
        known = experts_among(view, indices.node) == len(part.turns)
        require(known and indices.node is chosen.indices.node, UNKNOWN, part.hit)
        return alone(view, {part.hit}, part, len(part.turns))
    found = _positions(view, part.hit)
    if found is None or value(found.mask).ndim != 1:
        raise Declined(UNKNOWN, part.hit)
    experts = fresh(value(found.mask).shape, "e")[0]
    chain = {*found.passed}
    place = _summed(view, found.mask, experts, chain)
    if holds_counts(view, place.node, chosen.indices.node, len(part.turns)):
        return alone(view, {*chain, place.node}, part, len(part.turns))
    known = hot(view, place)
    if known is None:
        raise Declined(UNKNOWN, part.hit)
    indices, kept = known
    same = indices.node is chosen.indices.node
    require(same and (kept is None or _is_kept(kept, chosen)), UNKNOWN, part.hit)
    return alone(view, chain, part, len(part.turns))


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
        source = op.args.get("input")
        if _compares(op, True) and not compared:
            compared = True
        elif op.name in ("sum", "any") and op.args.get("dtype") is None and is_tensor(source):
            dims = _before(op.args.get("dim"), value(source).ndim, source, dims)
        else:
            break
        chain.add(node)
        assert isinstance(source, Node)
        node = source
    return Place(node, resolve(dims), experts)


def _counted(view: GraphView, node: Node, chain: set[Node], taken: bool) -> Node:
    """The mask of which a number tells whether it is true anywhere."""
    op = view.op(node)
    if _compares(op, taken):
        chain.add(node)
        node, taken = op.args["input"], True
        op = view.op(node)
    whole = op.name in ("sum", "any") and op.args.get("dtype") is None and taken
    source = op.args.get("input")
    require(whole and op.args.get("dim") is None and not view.is_written(node), UNKNOWN, node)
    assert isinstance(source, Node)
    chain.add(node)
    return source


def _compares(op: Op, taken: bool) -> bool:
    """Whether what is no less than zero is compared with zero: above it, or not."""
    other = op.args.get("other")
    return type(other) is int and (op.name, other) in (_ABOVE if taken else _NONE)


def _before(dim: object, rank: int, source: object, dims: Dims) -> Dims:
    """Axes of what is added up, without the dimensions kept.

    Raises:
        Declined: not along dimensions that are known.
    """
    assert isinstance(source, Node)
    given = dim if isinstance(dim, (tuple, list)) else (dim,)
    numbers = sorted(d % rank for d in given if type(d) is int)
    require(len(numbers) == len(given) and len(dims) == rank - len(numbers), UNKNOWN, source)
    own = list(dims)
    for at in numbers:
        own.insert(at, fresh((value(source).shape[at],), "summed")[0])
    return tuple(own)
