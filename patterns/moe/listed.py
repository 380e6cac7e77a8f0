"""Experts one after the other on runs of sorted rows, whose lengths are Python's numbers.

for e, count in enumerate(counts.tolist()):
    outputs.append(expert_e(rows[start : start + count]))
    start += count
torch.cat(outputs)                                          or rows.split(counts.tolist())

The numbers are proved to count the very indices that rows are sorted by (see `numbers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dims, fresh, leaves, resolve
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Match
from fuser.torch_private import known_true, to_expr
from fuser.turns import held, number, piece, run

from .cuts import arranged
from .expert import Expert, ExpertWalk
from .numbers import numbers_of, with_numbers
from .rows import rows_of
from .selection import sizes_of
from .space import Place, Space, require
from .supposed import LEFT, UNKNOWN, alone, is_left, parts, sizes_behind, tells_rows, with_idle
from .weights import Weights

_OTHER = "a condition is not that of one expert"


def listed(space: Space, node: Node, dims: Dims) -> list[Expert] | None:
    """The experts whose rows a node puts together, in the order of the experts; None where it does
    not put together runs."""
    op, order = space.view.op(node), space.order
    tensors = op.args.get("tensors")
    if order is None or op.name != "cat" or op.args.get("dim", 0) not in (0, -2):
        return None
    if not isinstance(tensors, (tuple, list)) or not all(map(is_tensor, tensors)):
        return None
    counts = numbers_of(space.view, order.ids)
    if len(dims) != 2 or leaves(dims[:1]) != leaves((order.row,)) or not counts:
        return None
    require(len(counts[0]) == len(tensors), "not every expert has its run", node)
    space.interior.add(node)
    found, start = list[Expert](), to_expr(0)
    for rows, count in zip(tensors, counts[0], strict=True):
        found.append(_on_run(space, rows, dims, start, start + count))
        start += count
    return found


def _on_run(space: Space, rows: Node, dims: Dims, start: Any, end: Any) -> Expert:
    """The expert that gave one run of rows.

    Raises:
        Declined: it was given other rows.
    """
    assert space.order is not None
    if rows.target is piece:
        space.interior.add(rows)
        (rows,) = rows.all_input_nodes
    row = fresh(value(rows).shape[:1], "row")[0]
    alone = Space(space.view, space.dtype, row, interior=space.interior, followed=space.followed)
    given = rows_of(alone, rows, (row, *dims[1:]))
    expert = ExpertWalk(alone).run(given.node, given.dims)

    def whole(place: Place) -> Place:
        """All rows, where a tensor has the run of this expert."""
        cut = _cut(place.node)
        require(cut is not None and place.dims[:1] == (row,), "an expert is given no run", rows)
        assert cut is not None
        source, first, last = cut
        own = to_expr(first) == start and to_expr(last) == end
        require(own, "an expert is given another run than its own", place.node)
        pieces = () if place.node.target is run else place.node.all_input_nodes
        space.interior.update((place.node, *pieces, *arranged(space.view, place.node)))
        assert space.order is not None
        return space.locate(source, (space.order.row, *place.dims[1:]))

    def weights(of: Weights) -> Weights:
        """Those of all rows, where a tensor has those of the run."""
        return Weights(tuple(whole(Place(f.node, resolve(f.dims))) for f in of.factors), of.scale)

    before, after = weights(expert.before), weights(given.weights.times(expert.inside))
    return replace(expert, x=whole(expert.x), before=before, inside=after)


def _cut(node: Node) -> tuple[Node, Any, Any] | None:
    """Rows, and where what is cut from them begins and ends."""
    if node.target is run:
        source, start, end = node.args
        assert isinstance(source, Node)
        return source, _number(start), _number(end)
    source = node.args[0] if node.args else None
    if getattr(node.target, "__name__", "") != "getitem" or not isinstance(source, Node):
        return None
    given: Any = source.args
    at: Any = node.args[1]
    if source.target != "split" or source.kwargs or len(given) != 2 or type(at) is not int:
        return None
    rows, sizes = given
    known = isinstance(sizes, (list, tuple)) and isinstance(rows, Node)
    if not known or not 0 <= at < len(sizes):
        return None
    return rows, sum(map(_number, sizes[:at])), sum(map(_number, sizes[: at + 1]))


def _number(size: Any) -> Any:
    return value(size) if isinstance(size, Node) else size


def with_listed(view: GraphView, match: Match) -> Match:
    """A region with all that was captured for runs with rows alone, and with their numbers.

    Raises:
        Declined: what was captured may be other than what eager does.
    """
    told = next((call for call in match.calls if "indices" in call.operands), None)
    if told is None or not any(node.target is number for node in view.nodes):
        return match
    given = [o.node for call in match.calls for o in call.operands.values()]
    indices = told.operands["indices"].node
    counts = numbers_of(view, indices)
    cats = [node for node in match.nodes if view.op(node).name == "cat"]
    if not counts or len(cats) != 1:
        return match
    pieces = list(zip(view.op(cats[0]).args["tensors"], counts[0], strict=True))
    for part in parts(view):
        inside = [p for p in pieces if part.first < view.order[p[0]] < part.last]
        if not inside:
            continue
        require(part.taken is not None and len(inside) == 1, _OTHER, part.hit)
        condition, (_, rows) = value(part.hit), inside[0]
        known = not isinstance(condition, torch.Tensor)
        require(known and tells_rows(to_expr(condition), rows, part.taken), UNKNOWN, part.hit)
        for before, now in part.left:
            require(is_left(rows, before, now), LEFT, part.marks[-1])
        sizes = alone(view, sizes_behind(part.hit), part, 0)
        nodes = {*match.nodes, *part.marks, *sizes}
        match = replace(match, nodes=frozenset(with_idle(view, match, part, nodes)))
    total = value(indices).numel()
    nodes = {*match.nodes, *_held(view, [node for node, _ in pieces], total)}
    nodes |= sizes_of(view, nodes, total if isinstance(total, int) else 0)
    return replace(match, nodes=frozenset(with_numbers(view, nodes, indices, given, total)))


def _held(view: GraphView, pieces: Sequence[Node], total: Any) -> set[Node]:
    """Where it is told how many pieces there are, of which there is one if there are rows."""
    found = [node for node in view.nodes if node.target is held and list(node.args) == pieces]
    return set(found) if known_true(total > 0) else set()
