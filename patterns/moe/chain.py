"""Experts that are written out, weighted, and added up one after the other.

What else is added on the way, a residual or an expert for every token, is added to the mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, leaves, resolve
from fuser.graph.ops import value
from fuser.graph.view import GraphView
from fuser.pattern import Match

from ..declined import Declined
from .additions import added_by, additions, beneath, is_inner, is_zero, shaped_like, smallest, terms
from .alternatives import branches_of
from .branches import Branch, Columns, column, columns_of, same, same_tensors
from .choices import experts_among
from .expert import Expert, NoExpert
from .picks import picks_of
from .region import Mixture, matched, mixture, together
from .rows import rows_of
from .space import Place, Space, require
from .weights import Weights

_PROBED = 4


@dataclass(frozen=True)
class _Member:
    """An expert that is added up.

    Attributes:
        term: of the chain; it may be several experts.
        branch: one of them.
        space: of its rows.
    """

    term: Node
    branch: Branch
    space: Space


def chain(view: GraphView, anchor: Node, out_dims: Dims) -> Match | None:
    """The mixture among what a chain of additions adds up; None where there is none."""
    if is_inner(view, anchor) or not _adds_expert(view, anchor, out_dims, _PROBED):
        return None
    members: list[_Member] = []
    declined: list[Declined] = []
    for term in terms(view, anchor):
        space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
        try:
            members += [_Member(term, b, space) for b in branches_of(space, term, out_dims)]
        except (NoExpert, Unproven):
            continue
        except Declined as error:
            if _is_weighted(view, term, out_dims):
                declined.append(error)
    plain = [m.branch for m in members if not m.branch.kept]
    groups = columns_of(view, plain)
    chosen = _by_choice(view, anchor, out_dims, groups, members) or _by_pick(
        view, anchor, out_dims, members
    )
    if chosen is not None:
        return chosen
    taken = {id(m.branch) for m in members if m.space.indices is not None}
    dense = [g for g in groups if not any(id(b) in taken for _, b in g.of)]
    group = next((g for g in dense if g.is_complete and len(g.of) > 1), None)
    if group is None:
        _explain(plain, groups, declined, anchor)
        return None
    return _matched(view, anchor, out_dims, group, members)


def _is_weighted(view: GraphView, term: Node, out_dims: Dims) -> bool:
    """Whether a term has a factor for each of its rows, as experts have and layers have not."""
    space = Space(view, value(term).dtype, leaves(out_dims[:-1]))
    try:
        return bool(rows_of(space, term, out_dims).weights.factors)
    except (Declined, Unproven):
        return False


def _explain(
    branches: list[Branch], groups: list[Columns], declined: list[Declined], anchor: Node
) -> None:
    """Why weighted experts in a chain are no mixture; nothing to say where there is one alone."""
    sources = [group.source for group in groups]
    apart = len(set(sources)) < len(sources)
    require(not apart, "experts have other weights beside the columns of one tensor", anchor)
    many = sum(bool(b.weights.factors) for b in branches) > 1
    require(not (groups and len(groups[0].of) > 1), "not every expert is there once", anchor)
    require(not many, "a weight is no column of the weights of all experts", anchor)
    if declined:
        raise declined[0]


def _matched(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    group: Columns,
    members: Sequence[_Member],
) -> Match | None:
    by_number = sorted(group.of, key=lambda pair: pair[0])
    experts = [b.expert for _, b in by_number]
    same(experts, anchor)
    end, whole, others = _whole(
        view, anchor, out_dims, group.axis, [b for _, b in group.of], members
    )
    weights = Weights((whole.locate(group.source, group.dims),)).times(group.rest)
    return replace(mixture(whole, end, out_dims, experts, weights), onto=others)


def _by_choice(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    groups: list[Columns],
    members: Sequence[_Member],
) -> Match | None:
    """One choice of all tokens after the other, each with the matrices of its experts."""
    spaces = {id(m.branch): m.space for m in members}
    for group in groups:
        indices = [spaces[id(b)].indices for _, b in group.of]
        cuts = [column(view, place) for place in indices if place is not None]
        numbers = [cut[3] for cut in cuts if cut is not None]
        if len(group.of) < 2 or len(numbers) != len(group.of):
            continue
        alike = all(_same_matrices(b.expert, group.of[0][1].expert) for _, b in group.of)
        known = [_renamed(cut, group.axis) for cut in cuts if cut is not None]
        source, dims = known[0]
        if not alike or any(found != known[0] for found in known):
            continue
        own = numbers == [number for number, _ in group.of]
        require(own, "a choice is weighted with the weight of another one", anchor)
        complete = group.count == len(numbers) and sorted(numbers) == list(range(len(numbers)))
        require(complete, "not every choice is there once", anchor)
        experts = [b.expert for _, b in group.of]
        same(experts, anchor)
        end, whole, others = _whole(
            view, anchor, out_dims, group.axis, [b for _, b in group.of], members, dense=False
        )
        whole.indices = Place(source, dims)
        weights = Weights((Place(group.source, group.dims),)).times(group.rest)
        return replace(mixture(whole, end, out_dims, experts[:1], weights), onto=others)
    return None


def _by_pick(
    view: GraphView, anchor: Node, out_dims: Dims, members: Sequence[_Member]
) -> Match | None:
    """All experts one after the other, each weighted where a choice is that expert."""
    space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
    for first, *others in picks_of(space, [m.branch for m in members]):
        if len(first.of) < 2:
            continue
        by_number = {pick.expert: b.expert for pick, b in first.of}
        for group in (first, *others):
            require(group.is_complete, "not every expert is there once", anchor)
            alike = all(same_tensors(b.expert, by_number[pick.expert]) for pick, b in group.of)
            require(alike, "a choice goes through other experts than the others do", anchor)
        same([b.expert for _, b in first.of], anchor)
        experts = [by_number[e] for e in range(len(by_number))]
        twice = any(expert.before.factors for expert in experts)
        require(not twice, "rows are weighted before the experts and after them", anchor)
        own, found = [b for _, b in first.of], list[Match]()
        end, whole, rest = _whole(view, anchor, out_dims, first.axis, own, members)
        for group in (first, *others):
            indices, weights, count = group.first.indices, group.first.weights, len(experts)
            known = experts_among(view, indices.node)
            numbers = "what is compared may be no number of an expert"
            require(known is not None, numbers, indices.node)
            require(known == count, "not every expert is there once", anchor)
            made = Mixture(experts, count, indices, weights, True, group.axis, ())
            found.append(matched(whole, end, out_dims, made))
        return replace(together(found), onto=rest)
    return None


def _renamed(cut: tuple[Node, Dims, Dim, int], axis: Dim) -> tuple[Node, Dims]:
    source, dims, own, _ = cut
    return source, tuple(axis if d == own else d for d in resolve(dims))


def _same_matrices(one: Expert, other: Expert) -> bool:
    """Whether two experts take their matrices of the same tensors."""
    places = [
        [(p.matrix.node, p.bias and p.bias.node) for p in expert.products]
        for expert in (one, other)
    ]
    return places[0] == places[1] and all(p.matrix.experts for p in one.products)


def _whole(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    axis: Dim,
    own: Sequence[Branch],
    members: Sequence[_Member],
    *,
    dense: bool = True,
) -> tuple[Node, Space, tuple[Node, ...]]:
    """The last addition of some branches, the space of their rows, and what else is added.

    Raises:
        Declined: a term has another branch as well.
    """
    wanted = {id(b) for b in own}
    spaces = {m.term: m.space for m in members if id(m.branch) in wanted}
    apart = any(m.term in spaces and id(m.branch) not in wanted for m in members)
    require(not apart, "not every expert is there once", anchor)
    end = smallest(view, anchor, set(spaces))
    found = terms(view, end)
    passed = additions(view, end, found)
    others: list[Node] = []
    for term in found:
        if term in spaces:
            continue
        if is_zero(view, term):
            passed.add(term)
        else:
            others.append(beneath(view, term, passed))
    whole = Space(view, value(end).dtype, leaves(out_dims[:-1]), axis, dense)
    for space in spaces.values():
        whole.interior |= space.interior
    whole.interior |= passed
    return end, whole, tuple(others)


def _adds_expert(view: GraphView, anchor: Node, out_dims: Dims, depth: int) -> bool:
    """Whether one of the last terms of a chain is a weighted expert: most chains are of something
    else, and long."""
    inputs = [n for n in added_by(view, anchor) or [anchor] if shaped_like(n, anchor)]
    deeper = [n for n in inputs if added_by(view, n) is not None and len(n.users) == 1]
    for term in inputs:
        if term in deeper:
            continue
        try:
            space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
            found = branches_of(space, term, out_dims)
        except (NoExpert, Unproven):
            continue
        except Declined:
            return True
        if any(b.weights.factors or b.kept for b in found):
            return True
    return depth > 0 and any(_adds_expert(view, n, out_dims, depth - 1) for n in deeper)
