"""Weights of one expert that are picked from those of the choices, where a choice is that expert.

(weights * (indices == e)).sum(-1)      torch.where(indices == e, weights, 0).sum(-1)
einsum("tk,tk->t", weights, (indices == e).float())
weights.masked_fill(indices != e, 0).sum(-1)            weights * (indices == e)   of one choice
where(indices[:, k] == e, weights[:, k] * expert, 0)    one choice after the other

Over all experts, and all choices, such weights are those of the choices, whatever the numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from fuser.graph.axes import (
    Dim,
    Dims,
    Unproven,
    broadcast,
    leaves,
    renamed,
    resolve,
    same_size,
    size_of,
)
from fuser.graph.ops import is_tensor, value
from fuser.graph.pull import is_contraction, pull_contraction, pull_pointwise
from fuser.graph.view import GraphView

from .additions import is_zero, terms
from .branches import Branch, Kept, column
from .choices import distinct, experts_among
from .filling import filled_with
from .masks import Chosen, Mark, chosen, mark, others
from .routing import summed
from .space import Place, Space, first_alike
from .weights import Weights, same_weights, unchanged

_LIMIT = 32


@dataclass(frozen=True)
class Pick:
    """The weight of one expert.

    Attributes:
        indices: which expert each choice of each token is.
        weights: of the choices.
        choices: their axis; none where a token has one choice.
        expert: which of the experts it is.
        position: of which of the choices alone, where it is of one of `count`.
    """

    indices: Place
    weights: Weights
    choices: Dim
    expert: int
    position: int = 0
    count: int = 1

    def named(self, choices: Dim) -> Pick:
        """The same with another axis of choices, of as many."""
        names = dict(zip(leaves((self.choices,)), leaves((choices,)), strict=False))

        def place(of: Place) -> Place:
            return Place(of.node, renamed(of.dims, names))

        factors = tuple(map(place, self.weights.factors))
        weights = replace(self.weights, factors=factors)
        return replace(self, indices=place(self.indices), weights=weights, choices=choices)

    def joins(self, other: Pick) -> bool:
        """Whether both are picked from the same weights of the same choices."""
        own = self.named(other.choices)
        alike = (own.indices, own.count) == (other.indices, other.count)
        return alike and same_weights(own.weights, other.weights)


@dataclass(frozen=True)
class Picks:
    """Weights that are picked from those of the same choices.

    Attributes:
        first: one of them.
        of: all of them, and the branches that are weighted so.
    """

    first: Pick
    of: Sequence[tuple[Pick, Branch]]

    @property
    def axis(self) -> Dim:
        return self.first.choices

    @property
    def is_complete(self) -> bool:
        """Whether the experts are those from 0 on, each once for every choice."""
        return _are_complete([pick for pick, _ in self.of])


def _are_complete(picks: Sequence[Pick]) -> bool:
    found = sorted((pick.expert, pick.position) for pick in picks)
    experts, count = len(found) // picks[0].count, picks[0].count
    return found == [(e, k) for e in range(experts) for k in range(count)]


def picks_of(space: Space, branches: Sequence[Branch]) -> list[list[Picks]]:
    """Branches by the choices of which a weight is picked, the most first; and together where the
    weights of the same branches are the sums of several."""
    found: list[Picks] = []
    for b in branches:
        for pick in _parts_of(space, b):
            at = next((i for i, known in enumerate(found) if pick.joins(known.first)), None)
            if at is None:
                found.append(Picks(pick, [(pick, b)]))
            else:
                found[at] = replace(found[at], of=[*found[at].of, (pick, b)])
    alike: dict[frozenset[int], list[Picks]] = {}
    for picks in sorted(found, key=lambda p: -len(p.of)):
        alike.setdefault(frozenset(id(b) for _, b in picks.of), []).append(picks)
    apart = [own for own in alike if not any(own & other for other in alike if other is not own)]
    return [alike[own] for own in apart]


def _parts_of(space: Space, b: Branch) -> list[Pick]:
    """The weights whose sum is that of a branch, each picked from those of some choices; nothing
    where one of them is not."""
    try:
        pick = _pick_of(space, b)
        if pick is not None:
            return [pick]
        for i, factor in enumerate(b.weights.factors):
            parts = [Place(n, factor.dims) for n in terms(space.view, factor.node)]
            alike = all(value(p.node).shape == value(factor.node).shape for p in parts)
            if not alike or not 1 < len(parts) <= _LIMIT:
                continue
            each = [Weights((part,)).times(b.weights.without(i)) for part in parts]
            picks = [_pick_of(space, replace(b, weights=own)) for own in each]
            known = [pick for pick in picks if pick is not None]
            if len(known) == len(parts):
                return known
    except Unproven:
        pass
    return []


def _pick_of(space: Space, b: Branch) -> Pick | None:
    """The weight of a branch: one that is picked, or all there is beside a mask."""
    view, rest, pick = space.view, Weights(scale=b.weights.scale), None
    marks = [_kept_mark(space, kept) for kept in b.kept]
    pending = list(b.weights.factors)
    while pending:
        factor = pending.pop()
        own = picked(space, factor) if pick is None else None
        told = mark(view, factor) if own is None else None
        if own is not None:
            pick = own
        elif told is not None and not told.negated and not _repeats(space, told):
            marks.append(told)
        elif (inner := _factors(space, factor)) and len(pending) < _LIMIT:
            pending += inner
        else:
            rest = rest.times(Weights((factor,)))
    if marks:
        told = _agreed(view, marks)
        if told is None:
            return None
        pick = pick or _beside(space, told)
        one = pick is not None and pick.expert == told.expert
        if pick is None or not one or not _is_of(told, pick):
            return None
    if pick is None:
        return None
    return _at_position(view, replace(pick, weights=pick.weights.times(rest)))


def _factors(space: Space, place: Place) -> list[Place]:
    """What a factor is the product of."""
    op = space.view.op(place.node)
    if op.name != "mul" or op.inplace or space.view.is_written(place.node):
        return []
    found = pull_pointwise(op, place.node, place.dims)
    tensors = [op.args.get("input"), op.args.get("other")]
    same = {value(n).dtype for n in found} | {value(place.node).dtype}
    floating = [d for d in same if d.is_floating_point]
    whole = len(found) == 2 and all(map(is_tensor, tensors)) and len(floating) == 1
    return [Place(*pair) for pair in found.items()] if whole else []


def _kept_mark(space: Space, kept: Kept) -> Mark | None:
    found = mark(space.view, kept.mask)
    if found is None or not kept.inverted:
        return found
    return None if found.choices else replace(found, negated=not found.negated)


def _repeats(space: Space, told: Mark) -> bool:
    """Whether a factor may be more than one."""
    return told.counts and not distinct(
        space.view, told.indices.node, told.indices.dims, told.choices
    )


def _agreed(view: GraphView, marks: Sequence[Mark | None]) -> Mark | None:
    """What masks tell together, if that is one expert."""
    known = [m for m in marks if m is not None]
    if len(known) != len(marks):
        return None
    positive = [m for m in known if not m.negated]
    if not positive:
        positive = [m for m in (_last(view, known),) if m is not None]
    if not positive:
        return None
    first = min(positive, key=lambda m: len(leaves((m.choices,))))
    alike = all(m.expert == first.expert and _is_same(m, first) for m in positive)
    ruled = all(m.expert != first.expert and _is_same(m, first) for m in known if m.negated)
    return first if alike and ruled and (not first.choices or positive == known) else None


def _last(view: GraphView, negated: Sequence[Mark]) -> Mark | None:
    """The one expert that is left where a choice is none of the others."""
    count = experts_among(view, negated[0].indices.node)
    left = set(range(count or 0)) - {m.expert for m in negated}
    return replace(negated[0], expert=left.pop(), negated=False) if len(left) == 1 else None


def _is_same(one: Mark, other: Mark) -> bool:
    """Whether two masks are told by the same choices."""
    names = dict(zip(leaves((one.choices,)), leaves((other.choices,)), strict=False))
    dims = renamed(one.indices.dims, names)
    return (one.indices.node, dims) == (other.indices.node, resolve(other.indices.dims))


def _is_of(told: Mark, pick: Pick) -> bool:
    return _is_same(told, Mark(pick.indices, pick.choices, pick.expert))


def _beside(space: Space, told: Mark) -> Pick | None:
    """A weight of one, where a mask tells the expert; a choice counts once."""
    node, dims = told.indices.node, told.indices.dims
    once = distinct(space.view, node, dims, told.choices)
    return Pick(told.indices, Weights(), told.choices, told.expert) if once else None


def _at_position(view: GraphView, pick: Pick) -> Pick:
    """The same as that of one of the choices, where indices are a column of them."""
    cut = None if pick.choices else column(view, pick.indices)
    if cut is None:
        return pick
    source, dims, axis, number = cut
    factors: list[Place] = []
    for factor in pick.weights.factors:
        own = column(view, factor)
        if own is None or own[3] != number or not same_size(size_of(own[2]), size_of(axis)):
            factors.append(factor)
        else:
            names = dict(zip(leaves((own[2],)), leaves((axis,)), strict=True))
            factors.append(Place(own[0], renamed(own[1], names)))
    count = size_of(axis)
    assert isinstance(count, int)
    weights = replace(pick.weights, factors=tuple(factors))
    return Pick(Place(source, resolve(dims)), weights, axis, pick.expert, number, count)


def picked(space: Space, place: Place) -> Pick | None:
    """What a weight is picked from."""
    view, (node, dims) = space.view, _bare(space, place.node, place.dims)
    op = view.op(node)
    if op.inplace or view.is_written(node):
        return None
    if is_contraction(op):
        found = pull_contraction(op, node, dims)
        sides = [(found.a, found.a_dims), (found.b, found.b_dims)]
        return _product(space, sides, found.inner)
    if op.name == "add":
        return _added_up(space, node, dims)
    inner = summed(op, node, dims)
    if inner is None:
        return _kept(space, node, dims, ())
    same = value(inner[0]).dtype is value(node).dtype
    return _kept(space, *inner) if same and not view.is_written(inner[0]) else None


def _added_up(space: Space, node: Node, dims: Dims) -> Pick | None:
    """Weights of one choice after the other that are added up."""
    view = space.view
    parts = [n for n in terms(view, node) if not is_zero(view, n)]
    if node in parts or any(value(n).shape != value(node).shape for n in parts):
        return None
    found = [picked(space, Place(n, dims)) for n in parts]
    picks = [_at_position(view, pick) for pick in found if pick is not None]
    first = picks[0] if picks else None
    if first is None or len(picks) != len(parts) or not all(p.joins(first) for p in picks):
        return None
    alone = {p.expert for p in picks} == {first.expert}
    every = sorted(p.position for p in picks) == list(range(first.count))
    return replace(first, position=0, count=1) if alone and every else None


def _bare(space: Space, node: Node, dims: Dims) -> tuple[Node, Dims]:
    """A tensor without what changes none of its numbers."""
    for _ in range(_LIMIT):
        step = None if space.view.is_written(node) else unchanged(space, node, dims)
        if step is None:
            break
        node, dims = step
    return node, resolve(dims)


def _kept(space: Space, node: Node, dims: Dims, choices: Dim) -> Pick | None:
    """Weights where choices are one expert, and zero elsewhere."""
    op = space.view.op(node)
    if op.inplace:
        return None
    if op.name == "mul":
        return _product(space, list(pull_pointwise(op, node, dims).items()), choices)
    if op.name not in ("where", "masked_fill"):
        return None
    fills = op.name == "masked_fill"
    weights, number = op.args["input"], op.args["value" if fills else "other"]
    mask, read = op.args["mask" if fills else "condition"], others if fills else chosen
    zero = (
        filled_with(space.view, number, space.view.order[node]) == 0
        if is_tensor(number)
        else type(number) in (int, float) and number == 0
    )
    if not is_tensor(weights) or not zero:
        return None
    known = read(space.view, mask, resolve(broadcast(dims, value(mask).shape)))
    own = _bare(space, weights, broadcast(dims, value(weights).shape))
    return _pick(space.view, known, Place(*own), choices)


def _product(space: Space, sides: Sequence[tuple[Node, Dims]], choices: Dim) -> Pick | None:
    """A mask of one expert times weights."""
    if len(sides) != 2:
        return None
    for mask, weights in (sides, sides[::-1]):
        known = chosen(space.view, *mask)
        found = (
            None
            if known is None
            else _pick(space.view, known, Place(*_bare(space, *weights)), choices)
        )
        if found is not None:
            return found
    return None


def _pick(view: GraphView, known: Chosen | None, weights: Place, choices: Dim) -> Pick | None:
    if known is None or known.kept is not None or len(leaves((choices,))) > 1:
        return None
    both = set(leaves(known.indices.dims)) & set(leaves(weights.dims))
    counts = value(weights.node).dtype.is_floating_point
    told = set(leaves((choices,))) <= both and counts
    own = Place(first_alike(view, weights.node), weights.dims)
    return Pick(known.indices, Weights((own,)), choices, known.expert) if told else None
