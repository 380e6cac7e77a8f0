"""From experts and weights to a region: what is proved of a whole mixture, and its operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, leaves, resolve, size_of
from fuser.graph.ops import value
from fuser.graph.view import GraphView
from fuser.pattern import Call, Match, Operand
from fuser.specs import MoeSpec
from fuser.torch_private import eager_world

from ..declined import Declined
from .choices import are_experts
from .expert import Expert
from .filling import writer
from .routing import Routing
from .space import Place, Space, require
from .weights import Weights

ID = "moe.mixture"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Mixture:
    """Everything that was found of one.

    Attributes:
        experts: one for all, or one each in order.
        count: how many there are.
        indices: of the experts that were chosen, `(tokens, choices)`.
        weights: of choices; of all experts where `dense`.
        choices: axes of the choices.
        along: axes of the weights beside those of tokens.
    """

    experts: Sequence[Expert]
    count: int
    indices: Place
    weights: Weights
    dense: bool
    choices: Dim
    along: Dim


def mixture(
    space: Space, anchor: Node, out_dims: Dims, experts: Sequence[Expert], weights: Weights
) -> Match:
    """The mixture of rows that are added up along `space.chosen`.

    Raises:
        Declined: something about it is not proved.
    """
    first = experts[0]
    before, after = first.before, weights
    require(
        not (before.factors and after.factors),
        "rows are weighted before the experts and after them",
        anchor,
    )
    given = before if before.factors else after
    if space.dense:
        indices = _support(space, given, anchor)
        choices = tuple(a for a in leaves(indices.dims) if a not in space.token_axes)
        count = len(experts) if len(experts) > 1 else size_of(space.chosen)
    else:
        require(space.indices is not None, "nothing tells which experts were chosen", anchor)
        assert space.indices is not None
        indices, choices = space.indices, space.chosen
        count = size_of(first.products[-1].matrix.experts)
    require(isinstance(count, int), "the number of experts is a symbol", anchor)
    assert isinstance(count, int)
    if space.dense and before.factors:
        kept = all(_keeps_zero(expert) for expert in experts)
        require(kept, "an expert makes something of a token that is weighted with zero", anchor)
    if space.order is not None:
        known = are_experts(space.view, indices.node, count)
        require(known, "rows are sorted by what may be no number of an expert", indices.node)
    scaled = Weights(given.factors, before.scale * after.scale)
    found = Mixture(experts, count, indices, scaled, space.dense, choices, space.chosen)
    return matched(space, anchor, out_dims, found)


def _support(space: Space, weights: Weights, anchor: Node) -> Place:
    """The chosen experts, beside which one of the factors is zero."""
    routing = Routing(space.view, space.chosen)
    for factor in weights.factors:
        found = routing.support(factor.node, factor.dims)
        if found is not None:
            return found
    raise Declined(
        "every expert has a weight that is not known to be zero where it was not chosen",
        weights.factors[0].node if weights.factors else anchor,
        "scatter the weights of the chosen ones into zeros, or mask the others with -inf",
    )


def _keeps_zero(expert: Expert) -> bool:
    """Whether an expert makes zeros of zeros."""
    if any(product.bias is not None for product in expert.products):
        return False
    dtype = value(expert.products[0].node).dtype
    with eager_world():
        zeros = {name: torch.zeros(1, 1, dtype=dtype) for name in expert.activation.inputs}
        return not bool(expert.activation(**zeros).count_nonzero())


def matched(
    space: Space, anchor: Node, out_dims: Dims, found: Mixture, end: Node | None = None
) -> Match:
    """The region of a mixture, whose result is `anchor`, and complete after `end`.

    Raises:
        Declined: its tensors do not fit together.
    """
    view, first, end = space.view, found.experts[0], end or anchor
    every = set(leaves((space.tokens,)))
    tokens = tuple(a for a in leaves(first.x.dims) if a in every)
    require(set(tokens) == every, "rows of several tokens start from the same numbers", anchor)
    features = leaves(out_dims[-1:])
    places: dict[str, tuple[Place, Dims]] = {
        "x": (first.x, (tokens, first.features)),
        "indices": (found.indices, (tokens, found.choices)),
        **_experts(found, features),
    }
    dtypes = {value(p.node).dtype for expert in found.experts for p in expert.products}
    require(len(dtypes) == 1, "products of an expert have different dtypes", anchor)
    (product_dtype,) = dtypes
    operands = {
        name: _operand(view, end, place, target) for name, (place, target) in places.items()
    }
    weighted = _weights(found, tokens)
    operands |= {
        name: _operand(view, end, place, target, whole=False)
        for name, (place, target) in weighted.items()
    }
    require(bool(weighted), "rows without a weight", anchor)
    spec = MoeSpec(
        found.count,
        tuple(first.columns),
        first.activation,
        tuple(p.bias is not None for p in first.products),
        len(found.experts) > 1,
        bool(first.before.factors),
        value(anchor).dtype,
        product_dtype,
    )
    _require_dtypes(operands, anchor)
    interior = frozenset({anchor, *space.interior, *(n for e in found.experts for n in e.interior)})
    return Match(
        pattern=ID,
        anchor=anchor,
        nodes=interior,
        outputs=(anchor,),
        calls=(Call(spec, operands, found.weights.scale),),
        result=(tokens, features),
        dims=resolve(out_dims),
        facts=_facts(spec, found),
        native=space.order is not None,
    )


def _weights(found: Mixture, tokens: Dim) -> dict[str, tuple[Place, Dims]]:
    """Factors by name: those that tell all experts apart are `dense`, others that of choices."""
    places: dict[str, tuple[Place, Dims]] = {}
    along = set(leaves((found.along,)))
    for i, factor in enumerate(found.weights.factors):
        dense = found.dense and bool(along & set(leaves(factor.dims)))
        name = ("dense" if dense else "weights") + (f"_{i}" if i else "")
        places[name] = factor, (tokens, found.along if dense else found.choices)
    return places


def _experts(found: Mixture, features: Dim) -> dict[str, tuple[Place, Dims]]:
    """Matrices and biases by name."""
    places: dict[str, tuple[Place, Dims]] = {}
    separate = len(found.experts) > 1

    def experts(place: Place) -> tuple[Dim, ...]:
        require(separate or bool(place.experts), "experts share a tensor", place.node)
        return () if separate else (place.experts,)

    for e, expert in enumerate(found.experts):
        suffix = f"_{e}" if separate else ""
        for p, product in enumerate(expert.products):
            out = features if p == len(expert.products) - 1 else product.out
            target = (*experts(product.matrix), out, product.inner)
            places[f"m{p}{suffix}"] = product.matrix, target
            if product.bias is not None:
                places[f"b{p}{suffix}"] = product.bias, (*experts(product.bias), out)
    return places


def _operand(
    view: GraphView, end: Node, place: Place, target: Dims, *, whole: bool = True
) -> Operand:
    node, read_at = place.node, -1
    written = view.mutated_between(node, view.order[node] + 1, view.order[end])
    if written is not None:
        require(
            writer(view, node) is written,
            "a tensor is written to before the experts have read it",
            node,
        )
        read_at = view.order[written]
    missing = set(leaves(target)) - set(leaves(place.dims))
    require(not (whole and missing), "a tensor is the same for several tokens or experts", node)
    return Operand(node, resolve(place.dims), resolve(target), read_at=read_at)


def _require_dtypes(operands: dict[str, Operand], anchor: Node) -> None:
    for name, operand in operands.items():
        dtype = value(operand.node).dtype
        counted = name.startswith(("dense", "weights")) and not dtype.is_floating_point
        if name != "indices" and not counted and dtype not in _DTYPES:
            raise Declined(f"a part of it is {str(dtype)[6:]}", operand.node)
    if value(anchor).dtype not in _DTYPES:
        raise Declined(f"its result is {str(value(anchor).dtype)[6:]}", anchor)


def _facts(spec: MoeSpec, found: Mixture) -> dict[str, str]:
    chosen = size_of(found.choices)
    return {
        "experts": f"{spec.experts}, {chosen} for each token",
        "activation": spec.activation.formula(),
        "weights": "before the experts" if spec.weights_first else "after the experts",
        "from": "all experts" if found.dense else "the chosen experts",
    }
