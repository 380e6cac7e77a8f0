"""Mixture of experts, found by structure.

The anchor is where what the experts gave is added up: a sum over choices or over all experts, a
product that contracts experts, rows that are added to their tokens, or a chain of additions. From
there everything is walked upwards with its axes: the weight of each row, the expert behind it, and
the token in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, fresh, leaves, resolve, size_of
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import (
    Contraction,
    is_contraction,
    is_einsum,
    pull_contraction,
    pull_einsum,
    pull_view,
)
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern
from fuser.soundness import SIZE_OF_DATA
from fuser.torch_private import GuardOnDataDependentSymNode

from ..declined import Declined
from .additions import beneath, is_zero
from .branches import same, stacked
from .capacity import capacity
from .chain import chain
from .expert import Expert, ExpertWalk, NoExpert
from .listed import listed, weights_of, with_listed
from .products import Product
from .region import ID, Mixture, matched, mixture
from .restoring import added
from .routing import summed
from .rows import Rows, rows_of
from .space import Place, Space, require
from .taken import Taken, taken
from .unrolled import Unrolled, unrolled
from .weights import Weights
from .written import looped_rows

_SUMS = ("sum", "mean")
_ALONE = ("mul", "where", "masked_fill")
"""Where one row of a token is weighted, or the row of one expert is taken."""
_ADDS_ROWS = ("index_add", "scatter_add", "index_put")


@register_pattern
class MixtureOfExperts(Pattern):
    """Send each token through the experts that it chose alone.

        Σ weights · expert(x)   =>   fuser::moe

    Sound when: weights of experts that were not chosen are zero whatever the numbers are; experts
    differ by their tensors alone; nothing in between escapes.
    Declines:   every expert has a weight; an expert that mixes tokens.
    """

    id: ClassVar[str] = ID
    priority: ClassVar[int] = 10

    def anchors(self, view: GraphView) -> Iterable[Node]:
        tensors = [node for node in view.nodes if is_tensor(node)]
        for node in tensors:
            op = view.op(node)
            adds = op.name in (*_SUMS, *_ADDS_ROWS, "linear")
            if adds or is_contraction(op) or is_einsum(op, 3):
                yield node
        for names in (("add",), _ALONE):
            for node in reversed(tensors):  # the longest chain first
                if view.op(node).name in names:
                    yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        try:
            found = _prove(view, anchor)
            return with_listed(view, found) if isinstance(found, Match) else found
        except NoExpert:
            return None
        except Declined as error:
            return Decline(error.reason, error.node, hint=error.hint)
        except Unproven:
            return None  # of most sums nobody would say that they are mixtures
        except GuardOnDataDependentSymNode:
            common = view.op(anchor).name in (*_ALONE, "linear")
            return None if common else Decline(SIZE_OF_DATA, anchor)


def _prove(view: GraphView, anchor: Node) -> Match | Decline | None:
    op, out_dims = view.op(anchor), fresh(value(anchor).shape, "o")
    if is_contraction(op):
        own = out_dims if leaves(out_dims[-1:]) else out_dims[:-1]  # of a product with a column
        found = _contracted(view, anchor, own, pull_contraction(op, anchor, out_dims))
        return None if found is None else replace(found, dims=resolve(out_dims))
    if not leaves(out_dims[-1:]):
        return None
    if op.name in _SUMS:
        found = summed(op, anchor, out_dims, _SUMS)
        count = None if found is None else size_of(found[2])
        if found is None or op.args.get("dtype") is not None:
            return None
        source, dims, axis = found
        if op.name == "sum":
            return _along(view, anchor, out_dims, (source, dims), axis, Weights())
        if not isinstance(count, int) or not count:
            return None
        return _along(view, anchor, out_dims, (source, dims), axis, Weights(scale=1 / count))
    if op.name == "add":
        return chain(view, anchor, out_dims) or _unrolled(view, anchor, out_dims)
    if op.name in _ALONE:
        return _alone(view, anchor, out_dims)
    if op.name in _ADDS_ROWS:
        return _onto(view, anchor, out_dims)
    if op.name == "linear":
        return _linear(view, op, anchor, out_dims)
    return _of_three(view, anchor, out_dims, *pull_einsum(op, out_dims))


def _contracted(
    view: GraphView, anchor: Node, out_dims: Dims, product: Contraction
) -> Match | None:
    """A product that adds up experts: with weights, or with all of their last matrices."""
    sides = [(product.a, product.a_dims), (product.b, product.b_dims)]
    features, inner = set(leaves(out_dims[-1:])), set(leaves((product.inner,)))
    weighs = [not set(leaves(d)) & features and inner <= set(leaves(d)) for _, d in sides]
    if not inner:
        return None
    if sum(weighs) == 1:
        (node, dims), rows = sides[weighs.index(True)], sides[weighs.index(False)]
        if {*leaves(out_dims[:-1]), *inner} <= set(leaves(rows[1])):
            weights = Weights((Place(node, dims),))
            found = _along(view, anchor, out_dims, rows, product.inner, weights)
            if found is not None:
                return found
        elif inner <= set(leaves(rows[1])) and set(leaves(out_dims[:-1])) <= set(leaves(dims)):
            found = capacity(view, anchor, out_dims, (node, dims), rows, product.inner)
            if found is not None:
                return found
    return _fused(view, anchor, out_dims, product)


def _along(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    source: tuple[Node, Dims],
    axis: Dim,
    weights: Weights,
) -> Match | None:
    """A mixture whose rows are added up along an axis: of all experts, or of choices."""
    declined: list[tuple[int, Declined]] = []
    for dense in (True, False):
        dtype = value(anchor).dtype
        space = Space(view, dtype, leaves(out_dims[:-1]), leaves((axis,)), dense)
        try:
            placed = replace(weights, factors=tuple(map(space.weight, weights.factors)))
            rows = rows_of(space, *source, placed)
            of = None if dense else taken(space, rows.node, rows.dims)
            if of is not None:
                return _of_all(space, anchor, out_dims, rows.node, of, rows.weights)
            loop = None if dense else looped_rows(space, rows.node, rows.dims)
            if loop is not None:
                after = rows.weights.times(loop.first.after)
                match = mixture(space, anchor, out_dims, loop.experts, after)
                return loop.ended(view, match)
            experts, inside = _experts_of(space, rows, anchor)
            return mixture(space, anchor, out_dims, experts, rows.weights.times(inside))
        except NoExpert:
            continue
        except Declined as error:
            declined.append((len(space.interior), error))
    if declined:
        raise max(declined, key=lambda found: found[0])[1]
    return None


def _unrolled(view: GraphView, anchor: Node, out_dims: Dims) -> Match | None:
    """A mixture whose rows are added up position by position."""
    found = unrolled(view, anchor, out_dims)
    if found is None:
        return None
    match = _of_positions(view, found, out_dims)
    if match is None:
        return None
    return replace(match, nodes=match.nodes | found.passed, onto=(*match.onto, *found.others))


def _alone(view: GraphView, anchor: Node, out_dims: Dims) -> Match | None:
    """A mixture of one choice, whose rows are not added up."""
    space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
    rows = rows_of(space, anchor, out_dims)
    if view.op(rows.node).name in ("where", "masked_fill"):
        return chain(view, anchor, out_dims)
    if not rows.weights.factors:
        return None
    try:
        of = taken(space, rows.node, rows.dims)
        expert = None if of is not None else ExpertWalk(space).run(rows.node, rows.dims)
    except Declined:
        return None  # of most products nobody would say that they are mixtures
    if of is not None:
        return _of_all(space, anchor, out_dims, rows.node, of, rows.weights)
    assert expert is not None
    apart = all(product.matrix.experts for product in expert.products)
    if not apart or len(expert.products) < 2:
        return None  # one expert for every token, or a part of one
    return mixture(space, anchor, out_dims, [expert], rows.weights.times(expert.inside))


def _of_positions(view: GraphView, found: Unrolled, out_dims: Dims) -> Match | None:
    if found.of is None:
        rows = found.rows.node, found.rows.dims
        return _along(view, found.end, out_dims, rows, found.axis, found.weights)
    space = Space(view, value(found.end).dtype, leaves(out_dims[:-1]), found.axis)
    return _of_all(space, found.end, out_dims, found.end, found.of, found.weights)


def _of_three(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    operands: Sequence[tuple[Node, Dims]],
    inner: Dim,
) -> Match | None:
    """A mixture by a product of three: weights, hidden features, and the last matrices."""
    for i, (node, dims) in enumerate(operands):
        a, b = (pair for j, pair in enumerate(operands) if j != i)
        summed_twice = set(leaves((inner,))) <= set(leaves(a[1])) & set(leaves(b[1]))
        if not summed_twice or set(leaves(dims)) & set(leaves(out_dims[-1:])):
            continue
        product = Contraction(*a, *b, inner)
        found = _fused(view, anchor, out_dims, product, Weights((Place(node, dims),)))
        if found is not None:
            return found
    return None


def _fused(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    product: Contraction,
    weights: Weights | None = None,
) -> Match | None:
    """A mixture whose last product contracts experts, or choices, with hidden features.

    Args:
        product: of those and the last matrices.
        weights: what it is multiplied with, for each expert or choice.
    """
    dtype, tokens = value(anchor).dtype, leaves(out_dims[:-1])
    sides = [(product.a, product.a_dims), (product.b, product.b_dims)]
    declined: list[tuple[int, Declined]] = []
    for axis in leaves((product.inner,)):
        inner = tuple(a for a in leaves((product.inner,)) if a is not axis)
        if not inner or len(leaves((product.inner,))) > 2:
            continue
        for dense in (True, False):
            space = Space(view, dtype, tokens, (axis,), dense, interior={anchor})
            last = _last(space, anchor, sides, axis, inner)
            if last is None:
                continue
            walk = ExpertWalk(space)
            try:
                expert = walk.through(last)
                for factor in weights.factors if weights is not None else ():
                    own = Weights((space.weight(factor),))
                    expert = replace(expert, inside=expert.inside.times(own))
                return mixture(space, anchor, out_dims, [expert], expert.inside)
            except NoExpert:
                continue
            except Declined as error:
                if walk.met or weights is not None:  # else nobody would take it for one
                    declined.append((len(space.interior), error))
    if declined:
        raise max(declined, key=lambda found: found[0])[1]
    return None


def _linear(view: GraphView, op: Op, anchor: Node, out_dims: Dims) -> Match | None:
    """A mixture whose last matrices are side by side in one."""
    node, weight = op.args["input"], op.args["weight"]
    inner = fresh(value(weight).shape[1:], "inner")[0]
    dims, passed = (*out_dims[:-1], inner), set[Node]()
    while (found := view.op(node)).kind is Kind.VIEW and not found.inplace:
        passed.add(node)
        node, dims = pull_view(found, node, dims)
    bias, added = op.args.get("bias"), ()
    if bias is not None:
        added = (bias,)
        if value(bias).dtype is not value(anchor).dtype:
            return None
    if len(leaves((inner,))) != 2 or view.is_written(node):
        return None
    product = Contraction(node, dims, weight, (out_dims[-1], inner), inner)
    match = _fused(view, anchor, out_dims, product)
    if match is None:
        return None
    return replace(match, nodes=match.nodes | passed, onto=(*match.onto, *added))


def _last(
    space: Space, node: Node, sides: Sequence[tuple[Node, Dims]], axis: Axis, inner: Dim
) -> Product | None:
    places = [space.locate(*side) for side in sides]
    matrices = [not set(leaves(p.dims)) & space.token_axes and bool(p.experts) for p in places]
    if sum(matrices) != 1:
        return None
    at = matrices.index(True)
    rows, dims = sides[1 - at]
    if not {axis, *inner} <= set(leaves(dims)):
        return None
    known = {*inner, *leaves((places[at].experts,))}
    out = tuple(a for a in leaves(places[at].dims) if a not in known)
    return Product(node, rows, dims, places[at], None, inner, out)


def _onto(view: GraphView, anchor: Node, out_dims: Dims) -> Match | None:
    """Rows in the order of their experts that are added where their tokens are."""
    found = added(view, anchor)
    if found is None:
        return None
    tokens, axis = leaves(out_dims[:-1]), fresh((found.choices,), "k")[0]
    space = Space(view, value(anchor).dtype, tokens, axis)
    try:
        dims = space.sort(found.order, ((*tokens, *axis), out_dims[-1]))
        rows = rows_of(space, found.rows, dims)
        experts, inside = _experts_of(space, rows, anchor)
    except NoExpert:
        return None
    passed, zeros = {anchor}, is_zero(view, found.base)
    base = found.base if zeros else beneath(view, found.base, passed)
    space.interior |= {*passed, base} if zeros else passed
    match = mixture(space, anchor, out_dims, experts, rows.weights.times(inside))
    return match if zeros else replace(match, onto=(base,))


def _experts_of(space: Space, rows: Rows, anchor: Node) -> tuple[Sequence[Expert], Weights]:
    """The experts that gave rows, one for all or each by itself where they are stacked, and what
    their rows are weighted with inside."""
    in_turn = listed(space, rows.node, rows.dims)
    if in_turn is not None:
        return in_turn, weights_of(in_turn, anchor)
    separate = stacked(space, rows.node, rows.dims)
    if separate is not None:
        experts, weights = separate
        same(experts, anchor)
        return experts, weights
    expert = ExpertWalk(space).run(rows.node, rows.dims)
    tells = bool(expert.products[-1].matrix.experts)
    require(tells, "an axis of rows is added up that tells no experts apart", anchor)
    return [expert], expert.inside


def _of_all(
    space: Space, anchor: Node, out_dims: Dims, node: Node, found: Taken, weights: Weights
) -> Match:
    """A mixture of rows of all experts, of which those of the chosen ones are taken afterwards.

    Args:
        space: of the rows that are taken.
        anchor, out_dims: their sum.
        node: what takes them.
        found: of which rows.
        weights: of the rows that are taken.
    """
    whole = Space(
        space.view, space.dtype, space.tokens, found.experts, True, interior=space.interior
    )
    every = rows_of(whole, found.source, found.dims)
    experts, inside = _experts_of(whole, every, anchor)
    own = every.weights.times(inside)
    require(not own.factors and not experts[0].before.factors, "rows are weighted twice", anchor)
    space.interior.add(node)
    count = len(experts) if len(experts) > 1 else size_of(whole.chosen)
    require(isinstance(count, int), "the number of experts is a symbol", anchor)
    assert isinstance(count, int)
    made = Mixture(
        experts, count, found.indices, weights.times(own), False, space.chosen, space.chosen
    )
    return replace(matched(space, anchor, out_dims, made), drops_nonfinite=True)
