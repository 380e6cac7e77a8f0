"""Which experts weights of all experts choose.

c[t, e]                                       the indices beside which c is zero, or a mask
c1[t, e] + c2[t, e], each with indices of its own, of which two may be the same expert:

Σ_e (c1 + c2)[t, e] · expert_e(x_t)  =  c1[t, i1_t] · expert_i1(x_t) + c2[t, i2_t] · expert_i2(x_t)
"""

from __future__ import annotations

from torch.fx import Node

from fuser.graph.axes import Dims, fresh, leaves, resolve
from fuser.graph.ops import value
from fuser.graph.pull import pull_pointwise

from ..cuts import cut_of
from ..declined import Declined
from .additions import added_by
from .routing import Mask, Routing
from .space import Place, Space, require
from .weights import Divisor, Weights, number_of, unchanged

MOST = 8
"""Terms that are looked at."""


def chosen_by(
    space: Space, weights: Weights, anchor: Node, *, apart: bool
) -> list[tuple[Place, Weights]]:
    """The chosen experts, and their weights; several where these are sums.

    Args:
        space: of the rows of all experts.
        weights: of all experts.
        anchor: where to decline.
        apart: what is made of rows with a sum of weights is the sum of what is made with each.

    Raises:
        Declined: a weight of an expert is not known to be zero where it was not chosen.
    """
    try:
        return [(_support(space, weights, anchor), weights)]
    except Declined:
        found = _by_term(space, weights) if apart else []
        if not found:
            raise
        return found


def _by_term(space: Space, weights: Weights) -> list[tuple[Place, Weights]]:
    for i, factor in enumerate(weights.factors):
        parts = _terms(space, factor)
        if not 1 < len(parts) <= MOST:
            continue
        found = [part.times(weights.without(i)) for part in parts]
        chosen = [(_indices(space, part), part) for part in found]
        known = [(place, part) for place, part in chosen if place is not None]
        if len(known) == len(chosen):
            return known
    return []


def _terms(space: Space, factor: Place) -> list[Weights]:
    """What a factor adds up, with the same axes and of the same dtype."""
    view, node, dims, by = space.view, factor.node, resolve(factor.dims), Weights()
    while not view.is_written(node) and not view.op(node).inplace:
        inputs = added_by(view, node)
        if inputs is not None:
            pulled = pull_pointwise(view.op(node), node, dims)
            same = len(pulled) == len(inputs) and all(
                resolve(own) == dims and value(n).dtype is value(node).dtype
                for n, own in pulled.items()
            )
            if not same:
                break
            return [t.times(by) for pair in pulled.items() for t in _terms(space, Place(*pair))]
        step = unchanged(space, node, dims)
        if step is None:
            apart = _apart(space, node, dims)
            if apart is None:
                break
            by, step = by.times(apart[0]), apart[1:]
        node, dims = step[0], resolve(step[1])
    return [Weights((factor,))]


def _apart(space: Space, node: Node, dims: Dims) -> tuple[Weights, Node, Dims] | None:
    """A number, or what all experts have alike, by which weights are multiplied or divided."""
    op = space.view.op(node)
    number = number_of(op)
    if op.name not in ("mul", "div") or op.args.get("rounding_mode") is not None:
        return None
    pulled = list(pull_pointwise(op, node, dims).items())
    if number is not None:
        return Weights(scale=number), *pulled[0]
    own = [pair for pair in pulled if space.chosen_axes & set(leaves(pair[1]))]
    rest = [pair for pair in pulled if pair not in own]
    if len(own) != 1 or len(rest) != 1:
        return None
    if op.name == "mul":
        return Weights((Place(*rest[0]),)), *own[0]
    divided = own[0][0] is op.args["input"]
    return (Weights((Divisor(*rest[0]),)), *own[0]) if divided else None


def _indices(space: Space, weights: Weights) -> Place | None:
    """The chosen experts, beside which one of the factors is zero."""
    for factor in weights.factors:
        if isinstance(factor, Divisor):
            continue
        found = Routing(space.view, space.chosen).support(factor.node, factor.dims)
        if found is not None:
            return found
    return None


def _support(space: Space, weights: Weights, anchor: Node) -> Place:
    """The chosen experts, beside which one of the factors is zero."""
    for masks in (False, True):
        routing = Routing(space.view, space.chosen, masks=masks)
        for factor in weights.factors:
            found = routing.support(factor.node, factor.dims)
            if found is not None and isinstance(found, Mask) is masks:
                return found
    for factor in weights.factors:
        require(
            not _is_part(space, factor),
            "the weights are those of a part of the experts, and which of a token's choices are "
            "among them is not followed",
            factor.node,
            "weight all experts in one sum",
        )
    raise Declined(
        "every expert has a weight that is not known to be zero where it was not chosen",
        weights.factors[0].node if weights.factors else anchor,
        "scatter the weights of the chosen ones into zeros, or mask the others with -inf",
    )


def _is_part(space: Space, factor: Place) -> bool:
    """Whether weights are those of some experts, of weights that choose among all."""
    cut, dims = cut_of(space.view, factor.node), resolve(factor.dims)
    if cut is None or set(leaves((dims[cut.dim],))) != set(leaves((space.chosen,))):
        return False
    experts = fresh((value(cut.source).shape[cut.dim],), "e")[0]
    whole = tuple(experts if i == cut.dim else dim for i, dim in enumerate(dims))
    return Routing(space.view, experts).support(cut.source, whole) is not None
