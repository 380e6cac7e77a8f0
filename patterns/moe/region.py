"""From experts and weights to a region: what is proved of a whole mixture, and its operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, fresh, leaves, resolve, size_of
from fuser.graph.ops import value
from fuser.graph.view import GraphView
from fuser.pattern import Call, Match, Operand
from fuser.specs import MoeSpec
from fuser.torch_private import eager_world

from ..declined import Declined
from .choices import are_experts
from .expert import Expert
from .filling import writer
from .routing import Mask
from .space import Place, Space, require
from .support import chosen_by
from .terms import only_sends
from .weights import Divisor, Weights

ID, LOCAL = "moe.mixture", "moe.local"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NUMBERS = ("indices", "ends", "counts")
_OF_CHOICES = ("indices", "weights", "dense", "over")


@dataclass(frozen=True)
class Mixture:
    """Everything that was found of one.

    Attributes:
        experts: one for all, or one each in order.
        count: how many there are.
        indices: of the experts that were chosen, `(tokens, choices)`; or a mask of all experts,
            which are the choices then.
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


@dataclass(frozen=True)
class Sent:
    """A mixture whose tokens were sent to places of experts.

    Attributes:
        experts: one for all, or one each in order.
        combine, dispatch: of `tokens`, experts and places: the weight of each, and whether it is
            taken.
        experts_axis, slots: the axes of experts and of their places.
        choices: to how many experts a token is sent at the most.
        scale: a number.
    """

    experts: Sequence[Expert]
    combine: Place
    dispatch: Place
    tokens: Dim
    experts_axis: Dim
    slots: Dim
    choices: int
    scale: float


def mixture(
    space: Space,
    anchor: Node,
    out_dims: Dims,
    experts: Sequence[Expert],
    weights: Weights,
    end: Node | None = None,
) -> Match:
    """The mixture of rows that are added up along `space.chosen`; complete after `end`.

    Raises:
        Declined: something about it is not proved.
    """
    first = experts[0]
    before, after = first.before, weights
    if before.factors and after.factors:
        sent_only = space.dense and only_sends(space, before, after, anchor)
        require(sent_only, "rows are weighted before the experts and after them", anchor)
        before = Weights(scale=before.scale)
        experts = [replace(expert, before=before) for expert in experts]
    given = before if before.factors else after
    if space.dense:
        chosen = chosen_by(space, given, anchor, apart=not before.factors)
        count = len(experts) if len(experts) > 1 else size_of(space.chosen)
    else:
        require(space.indices is not None, "nothing tells which experts were chosen", anchor)
        assert space.indices is not None
        chosen = [(space.indices, given)]
        one = size_of(first.products[-1].matrix.experts)
        count = len(experts) if len(experts) > 1 else one
    require(isinstance(count, int), "the number of experts is a symbol", anchor)
    assert isinstance(count, int)
    if space.dense and before.factors:
        kept = all(keeps_zero(expert) for expert in experts)
        require(kept, "an expert makes something of a token that is weighted with zero", anchor)
    if space.order is not None:
        (told, _) = chosen[0]
        known = are_experts(space.view, told.node, count)
        require(known, "rows are sorted by what may be no number of an expert", told.node)
    require(bool(given.factors), "rows without a weight", anchor)
    found: list[Match] = []
    for indices, weights in chosen:
        own = leaves((space.chosen,)) if isinstance(indices, Mask) else leaves(indices.dims)
        choices = tuple(a for a in own if a not in space.token_axes)
        beside = after.scale if before.factors else before.scale
        scaled = Weights(weights.factors, weights.scale * beside)
        made = Mixture(
            experts, count, indices, scaled, space.dense,
            choices if space.dense else space.chosen, space.chosen,
        )  # fmt: skip
        found.append(matched(space, anchor, out_dims, made, end))
    return together(found)


def together(found: Sequence[Match]) -> Match:
    """One region of mixtures of the same experts, added up, each with indices of its own.

    Raises:
        Declined: they are multiplied with different numbers.
    """
    first, *others = found
    if not others:
        return first
    (call,) = first.calls
    alike = all(match.calls[0].spec == call.spec for match in others)
    require(alike, "choices are multiplied with different numbers", first.anchor)
    operands = dict(call.operands)
    for number, match in enumerate(others, 1):
        own = match.calls[0].operands
        operands |= {f"{n}.{number}": own[n] for n in own if n.startswith(_OF_CHOICES)}
    call = Call(replace(call.spec, parts=len(found)), operands)
    facts = {**first.facts, "choices": f"{len(found)}, with indices of their own"}
    return replace(first, calls=(call,), facts=facts)


def keeps_zero(expert: Expert) -> bool:
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
    weighted = _weights(found, tokens)
    operands = {
        "x": _operand(view, end, first.x, (tokens, first.features)),
        _told(found.indices): _operand(view, end, found.indices, (tokens, found.choices)),
        **_experts(view, end, found.experts, features),
        **{n: _operand(view, end, *place, whole=False) for n, place in weighted.items()},
    }
    spec, each = _spec(found.experts, found.count, anchor), str(size_of(found.choices))
    if isinstance(found.indices, Mask):
        spec = replace(spec, dropping=True, sent=spec.experts)
        each = "as many as a mask tells"
    facts = {
        "experts": f"{spec.experts}, {each} for each token",
        "weights": "before the experts" if spec.weights_first else "after the experts",
        "from": "all experts" if found.dense else "the chosen experts",
    }
    call = Call(replace(spec, scale=found.weights.scale), operands)
    match = _region(space, anchor, out_dims, tokens, call, found.experts)
    return replace(match, facts={**match.facts, **facts}, drops_nonfinite=found.dense)


def _told(indices: Place) -> str:
    """The operand that tells which experts a token goes through."""
    if not isinstance(indices, Mask):
        return "indices"
    return "withheld" if indices.inverted else "taken"


def sent(space: Space, anchor: Node, out_dims: Dims, found: Sent) -> Match:
    """The region of a mixture with places.

    Raises:
        Declined: its tensors do not fit together.
    """
    view, first = space.view, found.experts[0]
    every = set(leaves((found.tokens,)))
    tokens = tuple(a for a in leaves(first.x.dims) if a in every)
    features, count = leaves(out_dims[-1:]), size_of(found.experts_axis)
    require(isinstance(count, int), "the number of experts is a symbol", anchor)
    assert isinstance(count, int)
    target = (tokens, found.experts_axis, found.slots)
    operands = {
        "x": _operand(view, anchor, first.x, (tokens, first.features)),
        "combine": _operand(view, anchor, found.combine, target),
        "dispatch": _operand(view, anchor, found.dispatch, target),
        **_experts(view, anchor, found.experts, features),
    }
    choices = min(found.choices, count)
    spec = replace(
        _spec(found.experts, count, anchor), dropping=True, sent=choices, scale=found.scale
    )
    facts = {
        "experts": f"{count}, {choices} for each token that has a place",
        "places": f"{size_of(found.slots)} of each expert",
    }
    call = Call(spec, operands)
    match = _region(space, anchor, out_dims, tokens, call, found.experts)
    return replace(match, facts={**match.facts, **facts}, drops_nonfinite=True)


def in_runs(
    space: Space, anchor: Node, out_dims: Dims, experts: Sequence[Expert], cut: Mapping[str, Node]
) -> Match:
    """The region of experts whose rows come in runs.

    Args:
        space: of the rows.
        anchor, out_dims: the result, with the axes of x as far as rows go.
        experts: one for all, or one each in order.
        cut: by its name, what tells where runs are: their `ends`, or `counts` of their rows.

    Raises:
        Declined: its tensors do not fit together.
    """
    view, first = space.view, experts[0]
    rows, features = leaves(out_dims[:1]), leaves(out_dims[-1:])
    separate = len(experts) > 1
    count = len(experts) if separate else size_of(first.products[-1].matrix.experts)
    assert isinstance(count, int)
    runs = fresh((count,), "e")
    own = {
        "weights" + (f"_{i}" if i else ""): _operand(view, anchor, factor, (rows, ()), whole=False)
        for i, factor in enumerate(first.inside.factors)
    }
    operands = {
        "x": _operand(view, anchor, first.x, (rows, first.features)),
        **{name: _operand(view, anchor, Place(t, runs), runs) for name, t in cut.items()},
        **_experts(view, anchor, experts, features),
        **own,
    }
    spec = replace(
        _spec(experts, count, anchor), dropping=True, runs=True, scale=first.inside.scale
    )
    match = _region(space, anchor, out_dims, rows, Call(spec, operands), experts)
    facts = {**match.facts, "experts": f"{count}, each with a run of rows"}
    return replace(match, pattern=LOCAL, facts=facts, native=True, any_size=True)


def _spec(experts: Sequence[Expert], count: int, anchor: Node) -> MoeSpec:
    first = experts[0]
    dtypes = {value(p.node).dtype for expert in experts for p in expert.products}
    require(len(dtypes) == 1, "products of an expert have different dtypes", anchor)
    inside = any(expert.inside.factors for expert in experts)
    overflows = inside and dtypes == {torch.float16}
    require(not overflows, "weights keep a product from overflowing in float16", anchor)
    return MoeSpec(
        count,
        tuple(first.columns),
        first.activation,
        tuple(p.bias is not None for p in first.products),
        len(experts) > 1,
        bool(first.before.factors),
        value(anchor).dtype,
        dtypes.pop(),
    )


def _region(
    space: Space,
    anchor: Node,
    out_dims: Dims,
    tokens: Dim,
    call: Call,
    experts: Sequence[Expert],
) -> Match:
    _require_dtypes(call.operands, anchor)
    return Match(
        pattern=ID,
        anchor=anchor,
        nodes=frozenset({anchor, *space.interior, *(n for e in experts for n in e.interior)}),
        outputs=(anchor,),
        calls=(call,),
        result=(tokens, leaves(out_dims[-1:])),
        dims=resolve(out_dims),
        facts={"activation": call.spec.activation.formula()},
        native=space.sorted,
        followed=frozenset(space.followed),
    )


def _weights(found: Mixture, tokens: Dim) -> dict[str, tuple[Place, Dims]]:
    """Factors by name: those that tell all experts apart are `dense`, others that of choices; those
    by which is divided are `over`."""
    places: dict[str, tuple[Place, Dims]] = {}
    along = set(leaves((found.along,)))
    for i, factor in enumerate(found.weights.factors):
        dense = found.dense and bool(along & set(leaves(factor.dims)))
        kind = "over" if isinstance(factor, Divisor) else "dense" if dense else "weights"
        name = kind + (f"_{i}" if i else "")
        places[name] = factor, (tokens, found.along if dense else found.choices)
    return places


def _experts(
    view: GraphView, end: Node, experts: Sequence[Expert], features: Dim
) -> dict[str, Operand]:
    """Matrices and biases by name."""
    found: dict[str, Operand] = {}
    separate = len(experts) > 1

    def placed(name: str, place: Place, *target: Dim) -> None:
        require(separate or bool(place.experts), "experts share a tensor", place.node)
        own = target if separate else (place.experts, *target)
        found[name] = _operand(view, end, place, own)

    for e, expert in enumerate(experts):
        suffix = f"_{e}" if separate else ""
        for p, product in enumerate(expert.products):
            out = features if p == len(expert.products) - 1 else product.out
            placed(f"m{p}{suffix}", product.matrix, out, product.inner)
            if product.bias is not None:
                placed(f"b{p}{suffix}", product.bias, out)
    return found


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
    own, wanted = set(leaves(place.dims)), set(leaves(target))
    require(own <= wanted, "a tensor differs between more than tokens, choices and experts", node)
    missing = wanted - own
    require(not (whole and missing), "a tensor is the same for several tokens or experts", node)
    return Operand(node, resolve(place.dims), resolve(target), read_at=read_at)


def _require_dtypes(operands: Mapping[str, Operand], anchor: Node) -> None:
    for name, operand in operands.items():
        dtype = value(operand.node).dtype
        counts = name.startswith(("dense", "weights", "over", "dispatch", "taken", "withheld"))
        counted = counts and not dtype.is_floating_point
        numbers = name.partition(".")[0] in _NUMBERS
        if not numbers and not counted and dtype not in _DTYPES:
            raise Declined(f"a part of it is {str(dtype)[6:]}", operand.node)
    if value(anchor).dtype not in _DTYPES:
        raise Declined(f"its result is {str(value(anchor).dtype)[6:]}", anchor)
