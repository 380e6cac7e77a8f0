"""Experts one after the other on runs of sorted rows, whose lengths are Python's numbers.

for e, count in enumerate(counts.tolist()):
    outputs.append(expert_e(rows[start : start + count]))
    start += count
torch.cat(outputs)                                          or rows.split(counts.tolist())

for e, end in enumerate(counts.cumsum(0).tolist()):
    t = (order // K)[start:end]
    out.index_add_(0, t, expert_e(x[t]) * weights[order[start:end]])
    start = end

The numbers are proved to count the very indices that rows are sorted by (see `numbers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, fresh, leaves, resolve
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Match
from fuser.torch_private import known_true, to_expr
from fuser.turns import held, number, piece, run

from .arange import divided
from .branches import same
from .copies import arranged
from .expert import Expert, ExpertWalk
from .numbers import numbers_of, with_numbers
from .order import Order, ordered
from .restoring import tokens_at
from .rows import rows_of
from .selection import sizes_of
from .space import Place, Space, require
from .supposed import LEFT, UNKNOWN, alone, is_left, parts, sizes_behind, tells_rows, with_idle
from .weights import Weights, same_weights
from .writes import Accumulator

_OTHER = "a condition is not that of one expert"


@dataclass
class _Run(Space):
    """Rows of one expert, which are a run of sorted ones.

    Attributes:
        every: the space of all sorted rows.
        ends: where the run begins and ends.
    """

    every: Space | None = None
    ends: tuple[Any, Any] = (0, 0)

    @property
    def chosen_axes(self) -> set[Axis]:
        return set[Axis]() if self.every is None else self.every.chosen_axes

    def _is_choice(self, index: Node, dims: Dims) -> bool:
        return False  # rows of one expert

    def weight(self, place: Place) -> Place:
        """Where a factor of rows is from, as one of all rows."""
        return self.whole(self.locate(place.node, place.dims))

    def whole(self, place: Place) -> Place:
        """All rows, where a tensor has those of the run, or is read where they are.

        Raises:
            Declined: it has others.
        """
        every, row, dims = self.every, leaves((self.tokens,)), resolve(place.dims)
        assert every is not None
        assert every.order is not None
        read = None if _cut(self.view, place.node) else self._selected(place.node, dims)
        node = place.node if read is None else read[1]
        cut = _cut(self.view, node)
        along = dims[:1] == (row,) and (read is None or read[2] == (row,))
        require(cut is not None and along, "an expert is given no run", place.node)
        assert cut is not None
        require(cut.ends == self.ends, "an expert is given another run than its own", place.node)
        every.interior |= {place.node, *cut.made_by, *arranged(self.view, place.node)}
        for made in cut.made_by:
            every.interior |= arranged(self.view, made) if is_tensor(made) else set()
        if read is not None:
            return every.locate_at(read[0], cut.source, cut.by, read[3])
        require(cut.by == 1, "an expert is given no run", place.node)
        return every.locate(cut.source, (every.order.row, *dims[1:]))


def listed(space: Space, node: Node, dims: Dims) -> list[Expert] | None:
    """The experts whose rows a node puts together, in the order of the experts; None where it does
    not put together runs."""
    op, order = space.view.op(node), space.order
    tensors = op.args.get("tensors")
    if order is None or op.name != "cat" or op.args.get("dim", 0) not in (0, -2):
        return None
    if not isinstance(tensors, (tuple, list)) or not all(map(is_tensor, tensors)):
        return None
    if len(dims) != 2 or leaves(dims[:1]) != leaves((order.row,)):
        return None
    space.interior.add(node)
    return on_runs(space, tensors, dims, node)


def on_runs(space: Space, tensors: Sequence[Node], dims: Dims, reader: Node) -> list[Expert] | None:
    """The experts that gave tensors, each on the run of its rows; None where nothing tells how
    long runs are.

    Raises:
        Declined: an expert is missing, or was given other rows.
    """
    ends = _ends(space)
    if not ends:
        return None
    require(len(ends) == len(tensors), "not every expert has its run", reader)
    return [_on_run(space, *each, dims) for each in zip(tensors, ends, strict=True)]


def _ends(space: Space) -> list[tuple[Any, Any]]:
    """Where the run of each expert begins and ends; nothing where that is not told."""
    assert space.order is not None
    counts, start = numbers_of(space.view, space.order.ids), to_expr(0)
    found = list[tuple[Any, Any]]()
    for count in counts[0] if counts else ():
        found.append((start, start + count))
        start += count
    return found


def accumulated(space: Space, found: Accumulator, out_dims: Dims) -> list[Expert] | None:
    """The experts that add their rows to an accumulator, each on the run of its rows; None where
    they are not added at runs of sorted tokens.

    Args:
        space: of the tokens, and as yet no choices.
        found: the accumulator.
        out_dims: its axes.

    Raises:
        Declined, Unproven: an expert is missing, or adds to other tokens than it was given.
    """
    view, anchor = space.view, found.writes[-1].node
    cuts = list[_Cut]()
    for write in found.writes:
        index = write.index[0] if len(write.index) == 1 else None
        cut = _cut(view, index) if is_tensor(index) else None
        if cut is None:
            return None
        cuts.append(cut)
    told = [_told(view, cut) for cut in cuts]
    if told[0] is None:
        return None
    order, choices = told[0]
    space.chosen = fresh((choices,), "k")[0]
    dims = space.sort(order, ((*leaves((space.tokens,)), *leaves((space.chosen,))), out_dims[-1]))
    own = [cut.ends for cut in cuts] == _ends(space) and all(one == told[0] for one in told)
    require(own, "rows are not added where the tokens of a run are", anchor)
    for write, cut in zip(found.writes, cuts, strict=True):
        space.interior.update((write.node, *write.passed, *cut.made_by))
        space.interior |= arranged(view, write.index[0])
    return on_runs(space, [write.rows for write in found.writes], dims, anchor)


def _told(view: GraphView, cut: _Cut) -> tuple[Order, int] | None:
    """The order, and how many choices a token has, of which a cut has the tokens."""
    if cut.by == 1:
        return tokens_at(view, cut.source)
    order = ordered(view, cut.source)
    return None if order is None else (order, cut.by)


def weights_of(experts: Sequence[Expert], anchor: Node) -> Weights:
    """What the rows of all runs are weighted with, after the experts.

    Raises:
        Declined: experts differ by more than their tensors.
    """
    same(experts, anchor)
    first = experts[0]
    alike = all(
        same_weights(expert.inside, first.inside) and same_weights(expert.before, first.before)
        for expert in experts
    )
    require(alike, "experts are weighted differently", anchor)
    return first.inside


def _on_run(space: Space, rows: Node, ends: tuple[Any, Any], dims: Dims) -> Expert:
    """The expert that gave one run of rows, which begins and ends somewhere.

    Raises:
        Declined: it was given other rows.
    """
    if rows.target is piece:
        space.interior.add(rows)
        (rows,) = rows.all_input_nodes
    row = fresh(value(rows).shape[:1], "row")[0]
    alone = _Run(
        space.view, space.dtype, row, interior=space.interior, followed=space.followed,
        every=space, ends=ends,
    )  # fmt: skip
    given = rows_of(alone, rows, (row, *dims[1:]))
    expert = ExpertWalk(alone).run(given.node, given.dims)
    return replace(expert, x=alone.whole(expert.x), inside=given.weights.times(expert.inside))


@dataclass(frozen=True)
class _Cut:
    """Of what a tensor is cut, where that begins and ends, and by which number it is divided, and
    rounded down, then."""

    source: Node
    ends: tuple[Any, Any]
    made_by: tuple[Node, ...]
    by: int = 1


def _cut(view: GraphView, node: Node) -> _Cut | None:
    if node.target is run:
        source, start, end = node.args
        assert isinstance(source, Node)
        return _Cut(source, (_number(start), _number(end)), (node,))
    quotient = divided(view.op(node))
    if quotient is not None:
        found = _cut(view, quotient[0])
        once = found is not None and found.by == 1 and not view.is_written(node)
        if found is None or not once:
            return None
        return replace(found, by=quotient[1], made_by=(node, *found.made_by))
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
    start: Any = sum(map(_number, sizes[:at]), to_expr(0))
    return _Cut(rows, (start, start + _number(sizes[at])), (node, source))


def _number(size: Any) -> Any:
    return to_expr(value(size) if isinstance(size, Node) else size)


def with_listed(view: GraphView, match: Match) -> Match:
    """A region with all that was captured for runs with rows alone, and with their numbers.

    Raises:
        Declined: what was captured may be other than what eager does.
    """
    cats = [node for node in match.nodes if view.op(node).name == "cat"]
    if len(cats) != 1 or not any(node.target is number for node in view.nodes):
        return match
    return with_runs(view, match, view.op(cats[0]).args["tensors"])


def with_runs(view: GraphView, match: Match, made: Sequence[Node]) -> Match:
    """The same, where each of some nodes is what is made of the run of one expert.

    Raises:
        Declined: what was captured may be other than what eager does.
    """
    of = next((call for call in match.calls if "indices" in call.operands), None)
    if of is None:
        return match
    given = [o.node for call in match.calls for o in call.operands.values()]
    indices = of.operands["indices"].node
    counts = numbers_of(view, indices)
    if not counts:
        return match
    pieces = list(zip(made, counts[0], strict=True))
    for part in reversed(parts(view)):  # one within another first
        inside = [p for p in pieces if part.first < view.order[p[0]] < part.last]
        if not inside:
            continue
        if part.taken is None:
            require(len(inside) == len(pieces) and not part.left, LEFT, part.marks[-1])
            told = {part.hit}
        else:
            require(len(inside) == 1, _OTHER, part.hit)
            condition, (_, rows) = value(part.hit), inside[0]
            known = not isinstance(condition, torch.Tensor)
            require(known and tells_rows(to_expr(condition), rows, part.taken), UNKNOWN, part.hit)
            for before, now in part.left:
                require(is_left(rows, before, now), LEFT, part.marks[-1])
            told = sizes_behind(part.hit)
        nodes = {*match.nodes, *part.marks, *alone(view, told, part, 0)}
        match = replace(match, nodes=frozenset(with_idle(view, match, part, nodes)))
    total = value(indices).numel()
    nodes = {*match.nodes, *_held(view, made, total)}
    nodes |= sizes_of(view, nodes, total if isinstance(total, int) else 0)
    return replace(match, nodes=frozenset(with_numbers(view, nodes, indices, given, total)))


def _held(view: GraphView, pieces: Sequence[Node], total: Any) -> set[Node]:
    """Where it is told how many pieces there are, of which there is one if there are rows."""
    found = [node for node in view.nodes if node.target is held and list(node.args) == list(pieces)]
    return set(found) if known_true(total > 0) else set()
