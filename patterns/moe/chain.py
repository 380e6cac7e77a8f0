"""Experts that are written out, weighted, and added up one after the other.

What else is added on the way, a residual or an expert for every token, is added to the mixture.
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, leaves, resolve
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Match

from ..declined import Declined
from .branches import Branch, Columns, branch, column, columns_of, same
from .choices import experts_among
from .expert import Expert, NoExpert
from .picks import Picks, picks_of
from .region import Mixture, matched, mixture
from .rows import rows_of
from .space import Place, Space, require
from .weights import Weights

IN_PLACE = "experts are added in place to what something else has made"
_PROBED = 4


def chain(view: GraphView, anchor: Node, out_dims: Dims) -> Match | None:
    """The mixture among what a chain of additions adds up; None where there is none."""
    if is_inner(view, anchor) or not _adds_expert(view, anchor, out_dims, _PROBED):
        return None
    found = terms(view, anchor)
    branches: dict[Node, tuple[Branch, Space]] = {}
    declined: list[Declined] = []
    for term in found:
        space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
        try:
            branches[term] = branch(space, term, out_dims), space
        except (NoExpert, Unproven):
            continue
        except Declined as error:
            if _is_weighted(view, term, out_dims):
                declined.append(error)
    groups = columns_of(view, [b for b, _ in branches.values()])
    chosen = _by_choice(view, anchor, out_dims, groups, branches) or _by_pick(
        view, anchor, out_dims, branches
    )
    if chosen is not None:
        return chosen
    taken = {id(b) for b, space in branches.values() if space.indices is not None}
    dense = [g for g in groups if not any(id(b) in taken for _, b in g.of)]
    group = next((g for g in dense if g.is_complete and len(g.of) > 1), None)
    if group is None:
        _explain([b for b, _ in branches.values()], groups, declined, anchor)
        return None
    return _matched(view, anchor, out_dims, group, branches)


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
    branches: dict[Node, tuple[Branch, Space]],
) -> Match | None:
    by_number = sorted(group.of, key=lambda pair: pair[0])
    experts = [b.expert for _, b in by_number]
    same(experts, anchor)
    end, whole, others = _whole(view, anchor, out_dims, group, branches)
    weights = Weights((whole.locate(group.source, group.dims),)).times(group.rest)
    return replace(mixture(whole, end, out_dims, experts, weights), onto=others)


def _by_choice(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    groups: list[Columns],
    branches: dict[Node, tuple[Branch, Space]],
) -> Match | None:
    """One choice of all tokens after the other, each with the matrices of its experts."""
    spaces = {id(b): space for b, space in branches.values()}
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
        end, whole, others = _whole(view, anchor, out_dims, group, branches, dense=False)
        whole.indices = Place(source, dims)
        weights = Weights((Place(group.source, group.dims),)).times(group.rest)
        return replace(mixture(whole, end, out_dims, experts[:1], weights), onto=others)
    return None


def _by_pick(
    view: GraphView, anchor: Node, out_dims: Dims, branches: dict[Node, tuple[Branch, Space]]
) -> Match | None:
    """All experts one after the other, each weighted where a choice is that expert."""
    space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
    for group in picks_of(space, [b for b, _ in branches.values()]):
        if len(group.of) < 2:
            continue
        require(group.is_complete, "not every expert is there once", anchor)
        by_number = sorted(group.of, key=lambda pair: pair[0])
        experts = [b.expert for _, b in by_number]
        same(experts, anchor)
        twice = any(expert.before.factors for expert in experts)
        require(not twice, "rows are weighted before the experts and after them", anchor)
        indices, count = group.first.indices, len(experts)
        known = experts_among(view, indices.node)
        require(known is not None, "what is compared may be no number of an expert", indices.node)
        require(known == count, "not every expert is there once", anchor)
        end, whole, others = _whole(view, anchor, out_dims, group, branches)
        weights = Weights((group.first.weights,), experts[0].before.scale).times(group.rest)
        found = Mixture(experts, count, indices, weights, True, group.axis, ())
        return replace(matched(whole, end, out_dims, found), onto=others)
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
    group: Columns | Picks,
    branches: dict[Node, tuple[Branch, Space]],
    *,
    dense: bool = True,
) -> tuple[Node, Space, tuple[Node, ...]]:
    """The last addition of a group, the space of its rows, and what else is added."""
    own = {id(b) for _, b in group.of}
    members = {term: space for term, (b, space) in branches.items() if id(b) in own}
    end = smallest(view, anchor, set(members))
    found = terms(view, end)
    passed = additions(view, end, found)
    others: list[Node] = []
    for term in found:
        if term in members:
            continue
        if is_zero(view, term):
            passed.add(term)
        else:
            others.append(beneath(view, term, passed))
    whole = Space(view, value(end).dtype, leaves(out_dims[:-1]), group.axis, dense)
    for space in members.values():
        whole.interior |= space.interior
    whole.interior |= passed
    return end, whole, tuple(others)


def terms(view: GraphView, node: Node) -> list[Node]:
    """What a chain of additions adds up, first term first."""
    found: list[Node] = []
    pending = [node]
    while pending:
        current = pending.pop()
        if current is node or (len(current.users) == 1 and _shaped_like(current, node)):
            inputs = _added(view, current)
            if inputs is not None:
                pending += reversed(inputs)
                continue
        found.append(current)
    return found


def _added(view: GraphView, node: Node) -> list[Node] | None:
    """The tensors that an addition adds up; Python's `sum` adds the first one to 0."""
    op = view.op(node)
    if op.name != "add" or op.args.get("alpha", 1) != 1:
        return None
    inputs = [op.args.get("input"), op.args.get("other")]
    tensors = [n for n in inputs if is_tensor(n)]
    return tensors if all(is_tensor(n) or n == 0 for n in inputs) else None


def _shaped_like(node: Node, other: Node) -> bool:
    return value(node).shape == value(other).shape


def is_inner(view: GraphView, node: Node) -> bool:
    """Whether an addition is a part of a longer chain, which was looked at before."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    return _added(view, user) is not None and _shaped_like(node, user)


def smallest(view: GraphView, node: Node, wanted: set[Node]) -> Node:
    """The first addition of a chain with which all the wanted terms are added up."""
    while True:
        inputs = _added(view, node)
        assert inputs is not None
        whole = [n for n in inputs if _added(view, n) is not None and wanted <= set(terms(view, n))]
        if not whole or len(whole[0].users) != 1:
            return node
        node = whole[0]


def is_zero(view: GraphView, node: Node) -> bool:
    """Whether a term is what a sum starts from: zeros that nobody else writes to."""
    name = str(getattr(node.target, "__name__", node.target))
    return name in ("zeros", "zeros_like", "new_zeros") and len(node.users) == 1


def beneath(view: GraphView, term: Node, passed: set[Node]) -> Node:
    """What experts are added to: where that is a copy that was made for it, what was copied.

    Raises:
        Declined: they are added to it in place, which somebody else may see.
    """
    (user,) = term.users if len(term.users) == 1 else (None,)
    op = view.op(term)
    if user in passed and op.name == "clone" and is_tensor(op.args.get("input")):
        passed.add(term)
        return op.args["input"]
    key = view.storages.get(term)
    written = [n for n in passed if view.op(n).inplace and view.storages.get(n) == key]
    require(not written, IN_PLACE, term, "add them to zeros, or to a copy")
    return term


def additions(view: GraphView, node: Node, found: list[Node]) -> set[Node]:
    """The additions of a chain with these terms."""
    known, pending = set(found), [node]
    passed: set[Node] = set()
    while pending:
        current = pending.pop()
        if current not in known and current not in passed:
            passed.add(current)
            pending += _added(view, current) or []
    return passed


def _adds_expert(view: GraphView, anchor: Node, out_dims: Dims, depth: int) -> bool:
    """Whether one of the last terms of a chain is a weighted expert: most chains are of something
    else, and long."""
    inputs = [n for n in _added(view, anchor) or [] if _shaped_like(n, anchor)]
    deeper = [n for n in inputs if _added(view, n) is not None and len(n.users) == 1]
    for term in inputs:
        if term in deeper:
            continue
        try:
            found = branch(Space(view, value(anchor).dtype, leaves(out_dims[:-1])), term, out_dims)
        except (NoExpert, Unproven):
            continue
        except Declined:
            return True
        if found.weights.factors:
            return True
    return depth > 0 and any(_adds_expert(view, n, out_dims, depth - 1) for n in deeper)
