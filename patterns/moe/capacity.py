"""Experts with a capacity: tokens are sent to places of experts, and what has no place is dropped.

rows     = einsum("tec,td->ecd", dispatch, x)
out      = einsum("tec,ecd->td", combine, expert(rows))

A place that holds one token alone holds that token's numbers, so that Σ_ec combine · expert is
Σ_e (Σ_c combine) · expert(x), of the experts at which the token has a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, leaves, renamed, resolve, same_size, size_of
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.pull import is_contraction, pull_contraction
from fuser.graph.view import GraphView
from fuser.pattern import Match

from .branches import column, same, stacked
from .choices import found_by
from .copies import CASTS, COPIES, arranged
from .expert import Expert, ExpertWalk, NoExpert
from .places import Places, parts
from .region import Sent, keeps_zero, sent
from .rows import rows_of
from .space import Place, Space, require
from .terms import bare, is_within, nonzero_of

TOGETHER = "tokens are not known to have places of their own"
_MAX_DEPTH = 32


def capacity(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    combine: tuple[Node, Dims],
    rows: tuple[Node, Dims],
    inner: Dim,
) -> Match | None:
    """The mixture of a product that contracts the places of all experts.

    Args:
        view: the graph.
        anchor: the product, with axes `out_dims`.
        combine: `(tokens, experts, places)`, with its axes.
        rows: what experts made of their places.
        inner: axes of experts and places.

    Returns:
        the match, or None where rows are no experts'.

    Raises:
        Declined: two tokens may have the same place.
    """
    tokens = leaves(out_dims[:-1])
    own = Space(view, value(anchor).dtype, tokens, inner, dense=True).locate(*combine)
    apart = set(leaves(rows[1])) & set(tokens)
    for experts, slots in parts(leaves((inner,))):
        if not slots:
            return None
        space = Space(
            view, value(anchor).dtype, (*(t for t in tokens if t in apart), *slots), experts,
            dense=True, places=True, interior={anchor},
        )  # fmt: skip
        try:
            found = rows_of(space, *rows)
            separate = stacked(space, found.node, found.dims)
            made = [ExpertWalk(space).run(found.node, found.dims)] if separate is None else [
                _sent_to(view, expert, e, experts) for e, expert in enumerate(separate[0])
            ]  # fmt: skip
        except (NoExpert, Unproven):
            continue
        if separate is None and not made[0].products[-1].matrix.experts:
            continue
        weights = found.weights.times(made[0].inside if separate is None else separate[1])
        require(not weights.factors, "rows are weighted twice", anchor)
        same(made, anchor)
        places = Places(view, experts, slots, apart)
        x, dispatch = _dispatched(space, tokens, made[0], anchor)
        choices = _proved(places, own, dispatch, made, anchor)
        made = [replace(e, x=x) for e in made]
        mixture = Sent(made, own, dispatch, tokens, experts, slots, choices, weights.scale)
        return sent(space, anchor, out_dims, mixture)
    return None


def _sent_to(view: GraphView, expert: Expert, number: int, experts: Dim) -> Expert:
    """An expert of a stack, given all places; its own are those of its number."""
    cut = column(view, expert.x)
    known = cut is not None and cut[3] == number and same_size(size_of(cut[2]), size_of(experts))
    require(known, "experts are given other places than their own", expert.x.node)
    assert cut is not None
    source, dims, axis, _ = cut
    own = tuple(experts if d == axis else d for d in resolve(dims))
    return replace(expert, x=Place(source, own))


def _dispatched(space: Space, tokens: Dim, expert: Expert, anchor: Node) -> tuple[Place, Place]:
    """The tokens that a product sends to places, and by what mask."""
    view, place = space.view, space.locate(expert.x.node, expert.x.dims)
    op = view.op(place.node)
    require(is_contraction(op), "places are not filled by a product with a mask", place.node)
    found = pull_contraction(op, place.node, place.dims)
    sides = [(found.a, found.a_dims), (found.b, found.b_dims)]
    features = set(leaves((expert.features,)))
    at = [i for i, (_, dims) in enumerate(sides) if features & set(leaves(dims))]
    require(len(at) == 1, "places are not filled by a product with a mask", place.node)
    x, mask = (space.locate(*sides[i]) for i in (at[0], 1 - at[0]))
    inner, routed = leaves((found.inner,)), [t for t in tokens if t not in space.token_axes]
    alike = len(inner) == len(routed) and all(
        same_size(a.size, b.size) for a, b in zip(inner, routed, strict=False)
    )
    require(alike, "places are filled with other tokens than those they are combined for", anchor)
    names = dict(zip(inner, routed, strict=True))
    x, mask = (Place(p.node, renamed(p.dims, names)) for p in (x, mask))
    own = set(tokens) | features
    require(set(leaves(x.dims)) == own, "tokens differ between places", x.node)
    space.interior |= {place.node, *arranged(view, place.node)}
    return x, mask


def _proved(
    places: Places, combine: Place, dispatch: Place, experts: Sequence[Expert], anchor: Node
) -> int:
    """To how many experts a token is sent at the most.

    Raises:
        Declined: a place may hold several tokens, or none where it is read.
    """
    try:
        terms = places.terms(combine.node, combine.dims, anchor)
        source = nonzero_of(places.view, dispatch)
        derived = source is not None and bare(places.view, source) == bare(places.view, combine)
        if derived:
            places.prove(terms)
        else:
            masks = places.terms(dispatch.node, dispatch.dims, anchor)
            places.prove(masks)
            whole = all(
                f in places.facts(mask) or places.is_slot(f) for mask in masks for f in mask
            )
            require(whole, "tokens are weighted where they are sent", dispatch.node)
            require(
                all(any(is_within(m, term, combine.dims) for m in masks) for term in terms),
                "tokens are combined from places that they were not sent to",
                combine.node,
            )
    except Unproven as error:
        require(False, f"{TOGETHER}: {error}", combine.node)
        raise
    if derived and not all(map(keeps_zero, experts)):
        gates = {f for term in terms for f in term - places.facts(term) if not places.is_slot(f)}
        known = all(_is_probability(places.view, f.node) for f in gates)
        require(known, "a token whose weight is zero is not sent at all", dispatch.node,
                "make the dispatch mask from positions, not from weights")  # fmt: skip
    beside = set(leaves((places.experts, places.slots))) | set(leaves(combine.dims))
    count = 0
    for term in terms:
        own = {a for f in term for a in f.axes if a not in beside}
        size = size_of(own)
        require(isinstance(size, int), "the number of choices is a symbol", combine.node)
        count += int(size)  # type: ignore[arg-type]
    return count


def _is_probability(view: GraphView, node: Node, depth: int = _MAX_DEPTH) -> bool:
    """Whether nothing can be learned through a weight that is zero: it is a softmax or sigmoid, or
    one of these divided."""
    op = view.op(node)
    source = op.args.get("input")
    if depth == 0:
        return False
    if op.kind is Kind.SOFTMAX or op.name == "sigmoid":
        return True
    ordered = found_by(view, node, 0)
    if ordered is not None and ordered.name in ("topk", "max", "sort"):
        return _is_probability(view, ordered.args["input"], depth - 1)
    if op.name == "mul" or is_contraction(op):
        inputs = [n for n in node.all_input_nodes if value(n).dtype.is_floating_point]
        return bool(inputs) and all(
            _is_mask(view, n) or _is_probability(view, n, depth - 1) for n in inputs
        )
    passed = op.kind in (Kind.VIEW, Kind.SLICE)
    passed |= op.name in (*COPIES, *CASTS, "gather", "index_select", "amax", "sum", "div", "select")
    return passed and is_tensor(source) and _is_probability(view, source, depth - 1)


def _is_mask(view: GraphView, node: Node) -> bool:
    """Whether a floating tensor was cast from integers or truth values."""
    op = view.op(node)
    source = op.args.get("input")
    return op.name in CASTS and is_tensor(source) and not value(source).dtype.is_floating_point
