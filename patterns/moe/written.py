"""What a loop over experts writes: the turns, in the order of their experts.

out[b] += weights[b, k] · expert_e(x[b])          out.index_add_(0, b, ...)
rows[flat == e] = expert_e(x.repeat_interleave(K, 0)[flat == e])

Rows are those of tokens, each added up where it is written; or those of choices, which are written
once each, and weighted and added up later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from fuser.graph.axes import (
    Axis,
    Dim,
    Dims,
    Size,
    fresh,
    leaves,
    renamed,
    resolve,
    same_size,
    size_of,
    split_dim,
)
from fuser.graph.ops import value
from fuser.graph.view import GraphView
from fuser.pattern import Call, Match, Operand
from fuser.specs import MoeSpec
from fuser.torch_private import to_expr

from ..declined import Declined
from .branches import column, in_one, same
from .choices import distinct, experts_among
from .expert import Expert, ExpertWalk, NoExpert
from .hits import with_parts
from .masks import Chosen, peeled, told
from .routing import Routing
from .rows import rows_of
from .selection import Column, Picked, mask_of, same_sizes, sizes_of
from .space import Place, Space, require
from .weights import Weights, same_weights
from .writes import (
    Accumulator,
    Write,
    accumulators,
    is_made_here,
    made_by,
    made_of_zeros,
)


@dataclass(frozen=True)
class Turn:
    """One turn of the loop.

    Attributes:
        expert: the expert.
        after: what its rows are weighted with; `weights` are those of its tokens, too.
        chosen: which expert it is.
        space: the rows that it is given.
    """

    expert: Expert
    after: Weights
    chosen: Chosen
    space: Picked

    @property
    def weights(self) -> Weights:
        return self.expert.before.times(self.after)


@dataclass
class _Shared:
    """Axes that all turns have.

    Attributes:
        masks: of their masks, beside those of tokens; None as long as none was read.
        choices: that were added up in the masks.
        experts: of weights of all experts.
    """

    masks: Dims | None = None
    choices: Dim = ()
    experts: Dim = ()


@dataclass(frozen=True)
class Looped:
    """All turns.

    Attributes:
        found: what is written to.
        turns: in the order in which they write.
        experts: one for all, or one each in order.
        first: the turn of the first expert.
        dropping: a choice may be no expert's.
    """

    found: Accumulator
    turns: Sequence[Turn]
    experts: Sequence[Expert]
    first: Turn
    dropping: bool

    def ended(self, view: GraphView, match: Match) -> Match:
        """The region of these experts with everything that belongs to the loop.

        Raises:
            Declined: what was captured may be other than what eager does.
        """
        interior = {node for turn in self.turns for node in turn.space.interior}
        most = size_of(leaves(self.first.space.mask_dims))
        match = _with_dropped(match, self.first.chosen.kept) if self.dropping else match
        match = whole(view, match, self.found, interior, most)
        return with_parts(view, match, self.found.writes, [t.chosen for t in self.turns], most)


def looped(view: GraphView, found: Accumulator, out_dims: Dims) -> Looped | None:
    """The loop that writes to an accumulator with these axes; None where nobody would say that it
    is one.

    Raises:
        Declined: something about it is not proved.
    """
    anchor, shared, turns = found.writes[-1].node, _Shared(), list[Turn]()
    for write in reversed(found.writes):  # of most writes nobody would say that they are a loop's
        try:
            turn = _turn(view, found, write, out_dims, shared)
        except NoExpert as error:
            if not turns:
                return None
            raise Declined(error.reason, error.node) from error
        if turn is None and not turns:
            return None
        if turn is None:
            raise Declined("not all that is added up are rows of experts", write.node)
        turns.append(turn)
    turns.reverse()
    ordered = _in_order(turns, anchor)
    first = ordered[0]
    dropping = _drops(view, ordered)
    indices = first.chosen.indices
    require_statements(view, found, indices, (*first.space.chosen, *shared.choices), dropping)
    once = "a token that chooses an expert twice goes through it once"
    require(distinct(view, indices.node, indices.dims, shared.choices), once, anchor)
    experts = [turn.expert for turn in ordered]
    same(experts, anchor)
    for turn in ordered:
        _require_weight(turn, first, anchor)
    return Looped(found, turns, in_one(view, experts), first, dropping)


def looped_rows(space: Space, node: Node, dims: Dims) -> Looped | None:
    """The loop that has written rows of choices, one to each, to what is read as a node.

    Args:
        space: of the rows, with what was passed between their sum and the node.
        node, dims: the rows.

    Raises:
        Declined: they are read before they are written, or something else is beneath them.
    """
    view = space.view
    made = (a for a in accumulators(view) if a.output is node)
    found = next(made, None)
    loop = None if found is None else looped(view, found, dims)
    if found is None or loop is None:
        return None
    early = _read_early(view, loop)
    require(early is None, "rows are read before all experts have written theirs", early or node)
    beneath = found.writes[0].adds and not made_of_zeros(view, found.start)
    require(not beneath, "experts add to what was there before the loop", found.start)
    apart = leaves((loop.first.space.chosen, loop.first.chosen.choices))
    require(not apart, "rows are added up twice", node)
    space.indices = loop.first.chosen.indices
    return loop


def _read_early(view: GraphView, loop: Looped) -> Node | None:
    """Who reads what is written to, or a view of it, before all is written."""
    start, last = loop.found.start, view.order[loop.found.writes[-1].node]
    key = view.storages.get(start)
    aliases = {start, *(n for n in view.nodes if key is not None and view.storages.get(n) == key)}
    own = {node for turn in loop.turns for node in turn.space.interior} | aliases
    readers = (user for node in aliases for user in node.users if user not in own)
    return next((user for user in readers if view.order[user] < last), None)


def _with_dropped(match: Match, kept: Place | None) -> Match:
    """The same with choices dropped that are no expert's, or that a mask rules out."""
    (call,) = match.calls
    spec: MoeSpec = call.spec
    operands = dict(call.operands)
    if kept is not None:
        target = (*operands["indices"].target, kept.experts)
        target = tuple(dim for dim in target if dim) if len(kept.dims) < len(target) else target
        operands["kept"] = Operand(kept.node, resolve(kept.dims), target)
    facts = {**match.facts, "dropped": "choices of no expert, or beyond its capacity"}
    return replace(match, calls=(Call(replace(spec, dropping=True), operands),), facts=facts)


def _turn(
    view: GraphView, found: Accumulator, write: Write, out_dims: Dims, shared: _Shared
) -> Turn | None:
    """One expert, if that is what is written."""
    mask = mask_of(view, write.index)
    rows = write.rows
    if mask is None or value(rows).ndim != 2:
        return None
    row = fresh(value(rows).shape[:1], "row")[0]
    if not row or not same_size(to_expr(value(rows).shape[1]), size_of(out_dims[-1])):
        return None  # one row for all of them, or one number
    space = Picked(view, value(found.output).dtype, leaves(out_dims[:-1]), row=row, mask=mask)
    space.mask_dims = _placed(space, write, out_dims, shared)
    space.chosen = leaves(shared.masks or ())
    given = rows_of(space, rows, (row, out_dims[-1]))
    expert = ExpertWalk(space).run(given.node, given.dims)
    before, after = expert.before, given.weights.times(expert.inside)
    once = not (before.factors and after.factors)
    require(once, "rows are weighted before the experts and after them", rows)
    known = told(view, mask, space.mask_dims)
    if known is None:
        raise Declined("nothing tells which expert the tokens of a mask chose", mask)
    if leaves((known.choices,)):
        shared.choices = shared.choices or leaves((known.choices,))
        names = dict(zip(leaves((known.choices,)), shared.choices, strict=True))
        indices = replace(known.indices, dims=renamed(known.indices.dims, names))
        known = replace(known, indices=indices, choices=shared.choices)
    after = _of_expert(view, after, known, shared)
    space.interior.update((write.node, *write.passed))
    space.interior |= same_sizes(space.interior)
    return Turn(expert, after, known, space)


def _of_expert(view: GraphView, weights: Weights, known: Chosen, shared: _Shared) -> Weights:
    """The same, of all experts where they are the column of this one.

    Raises:
        Declined: they are that of another one.
    """
    found: list[Place] = []
    for factor in weights.factors:
        cut = None
        if isinstance(factor, Column):
            cut = factor.node, factor.dims, factor.axis, factor.number
        elif leaves((known.choices,)):
            cut = column(view, factor)
        if cut is None:
            found.append(factor)
            continue
        node, dims, axis, number = cut
        shared.experts = shared.experts or leaves((axis,))
        same = number == known.expert and size_of(axis) == size_of(shared.experts)
        require(same, "a row is weighted with the weight of another expert", node)
        names = dict(zip(leaves((axis,)), shared.experts, strict=True))
        place = peeled(view, node, renamed(dims, names))
        found.append(replace(place, experts=shared.experts))
    return Weights(tuple(found), weights.scale)


def _placed(space: Picked, write: Write, out_dims: Dims, shared: _Shared) -> Dims:
    """Which tokens and choices the elements of a mask are, told by where rows are written.

    Raises:
        Declined: rows are not written to the tokens of the mask.
    """
    assert space.mask is not None
    space.mask_dims = fresh(value(space.mask).shape, "m")
    target = space.axes_at(write.index, (space.row, out_dims[-1]), len(out_dims))
    require(target is not None, "rows are not written to the tokens of a mask", write.node)
    assert target is not None
    require(target[-1] == out_dims[-1], "rows are written to a part of their features", write.node)
    names: dict[Axis, Dim] = {}
    for dim, out in zip(target[:-1], out_dims[:-1], strict=True):
        sizes = same_size(size_of(dim), size_of(out))
        require(sizes, "a mask has another number of tokens than the result", write.node)
        own = leaves((dim,))
        alone = not set(own) & names.keys()
        require(alone, "rows are not written to the tokens of a mask", write.node)
        names.update(zip(own, split_dim(out, [axis.size for axis in own]), strict=True))
    rest = [axis for axis in leaves(space.mask_dims) if axis not in names]
    if shared.masks is None:
        shared.masks = tuple((Axis(size_of((axis,)), "k"),) for axis in rest)
    alike = len(shared.masks) == len(rest) and all(
        same_size(size_of(a), size_of((b,))) for a, b in zip(shared.masks, rest, strict=True)
    )
    require(alike, "masks of experts have different shapes", write.node)
    names.update(zip(rest, map(leaves, ((dim,) for dim in shared.masks)), strict=True))
    dims = [leaves((dim,)) for dim in space.mask_dims]
    return tuple(tuple(a for own in dim for a in names[own]) for dim in dims)


def _in_order(turns: Sequence[Turn], anchor: Node) -> list[Turn]:
    """Turns in the order of their experts.

    Raises:
        Declined: one is missing or there twice, or looks at other choices.
    """
    numbers = [turn.chosen.expert for turn in turns]
    for turn in turns:
        pairs = ((turn.chosen.indices, turns[0].chosen.indices),)
        own, other = turn.chosen.kept, turns[0].chosen.kept
        require((own is None) == (other is None), "experts are chosen by different masks", anchor)
        if own is not None and other is not None:
            names = dict(zip(leaves((own.experts,)), leaves((other.experts,)), strict=True))
            dims = renamed(own.dims, names)
            pairs = (*pairs, (Place(own.node, dims), other))
        for a, b in pairs:
            alike = a.node is b.node and resolve(a.dims) == resolve(b.dims)
            require(alike, "experts are chosen by different indices", anchor)
    complete = sorted(numbers) == list(range(len(turns)))
    require(complete, "not every expert is there once", anchor)
    return [turns[numbers.index(e)] for e in range(len(turns))]


def _drops(view: GraphView, turns: Sequence[Turn]) -> bool:
    """Whether a choice may be no expert's, or ruled out by a mask."""
    known = turns[0].chosen
    among = experts_among(view, known.indices.node)
    count = known.classes if among is None else among
    return known.kept is not None or count is None or count > len(turns)


def require_statements(
    view: GraphView, found: Accumulator, indices: Place, choices: Dim, dropping: bool
) -> None:
    """What each statement does to rows that are there already is what adding up does.

    Raises:
        Declined: it is not.
    """
    for write in found.writes:
        if not write.adds:
            once = not leaves((choices,))
            require(once, "an expert replaces what another one gave a token", write.node)
            made = made_of_zeros if dropping else is_made_here
            known = made(view, found.start)
            require(known, "tokens may keep what was there before the loop", write.node)
        elif not write.repeats:
            unique = Routing(view, ()).unique(indices.node, indices.dims, choices)
            hint = "use index_add_, which adds up both" if unique is None else ""
            known = "a token that may choose an expert twice keeps one of two rows"
            require(unique is not None, known, write.node, hint)
    adds = {write.adds for write in found.writes}
    require(len(adds) == 1, "some experts add to a token and others replace it", found.start)
    if found.output is found.start and adds == {True}:
        zeros = made_of_zeros(view, found.start)
        require(zeros, "experts add to what was there before the loop", found.start)


def _require_weight(turn: Turn, first: Turn, anchor: Node) -> None:
    """Rows are weighted with the weights of their choices, from one tensor.

    Raises:
        Declined: they are not.
    """
    own, other = turn.weights, first.weights
    alike = bool(own.factors) == bool(other.factors)
    require(alike, "some experts have weights and others have none", anchor)
    for place in own.factors:
        axes = set(leaves(place.dims)) - turn.space.token_axes - turn.space.chosen_axes
        axes -= set(leaves((place.experts,)))
        apart = not axes and not set(leaves(place.dims)) & set(leaves((turn.space.row,)))
        require(apart, "rows are weighted with what is not the weight of their choice", anchor)
    before, given = turn.expert.before, first.expert.before
    alike = bool(before.factors) == bool(given.factors)
    require(alike, "some experts are given weighted tokens", anchor)
    alike = same_weights(before, given) and same_weights(turn.after, first.after)
    require(alike, "weights of experts come from different tensors", anchor)


def whole(
    view: GraphView, match: Match, found: Accumulator, interior: set[Node], most: Size
) -> Match:
    """The region with its sizes, its statements and the accumulator itself."""
    nodes = {*match.nodes, *interior}
    followed = {n for write in found.writes for n in (write.node, *write.passed)}
    onto: tuple[Node, ...] = ()
    replaces = not found.writes[0].adds
    if found.output is found.start or replaces or made_of_zeros(view, found.start):
        nodes |= made_by(view, found.start)
    else:
        onto = (found.start,)
    for call in match.calls:
        for operand in call.operands.values():
            apart = operand.node not in nodes
            require(apart, "experts read what they write to", operand.node)
    nodes |= sizes_of(view, nodes, most)
    return replace(
        match,
        nodes=frozenset(nodes),
        followed=frozenset(followed),
        onto=onto,
    )
