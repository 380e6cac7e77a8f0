"""Mixture of experts, found by structure.

The anchor is where what the experts gave is added up: a sum over choices or over all experts, a
product with weights that contracts experts, or a chain of additions. From there everything is
walked upwards with its axes: the weight of each row, the expert behind it, and the token in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, fresh, leaves, resolve, size_of
from fuser.graph.ops import is_tensor, value
from fuser.graph.pull import is_contraction, pull_contraction
from fuser.graph.view import GraphView
from fuser.pattern import Call, Decline, Match, Operand, Pattern
from fuser.registry import register_pattern
from fuser.soundness import SIZE_OF_DATA
from fuser.specs import MoeSpec
from fuser.torch_private import GuardOnDataDependentSymNode, eager_world

from ..declined import Declined
from .branches import Branch, additions, branch, column, is_zero, same, stacked, terms
from .expert import Expert, ExpertWalk, NoExpert
from .routing import Routing, are_experts, summed
from .rows import Rows, rows_of
from .space import Place, Space, require

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Mixture:
    """Everything that was found of one.

    Attributes:
        experts: one for all, or one each in order.
        count: how many there are.
        indices: of the experts that were chosen, `(tokens, choices)`.
        weights: of choices; of all experts where `dense`; None where all are one.
        choices: axes of the choices.
        along: axes of the weights beside those of tokens.
    """

    experts: Sequence[Expert]
    count: int
    indices: Place
    weights: Place | None
    dense: bool
    choices: Dim
    along: Dim


@register_pattern
class MixtureOfExperts(Pattern):
    """Send each token through the experts that it chose alone.

        Σ weights · expert(x)   =>   fuser::moe

    Sound when: weights of experts that were not chosen are zero whatever the numbers are; experts
    differ by their tensors alone; nothing in between escapes.
    Declines:   every expert has a weight; an expert that mixes tokens.
    """

    id: ClassVar[str] = "moe.mixture"
    priority: ClassVar[int] = 10

    def anchors(self, view: GraphView) -> Iterable[Node]:
        tensors = [node for node in view.nodes if is_tensor(node)]
        for node in tensors:
            op = view.op(node)
            if op.name == "sum" or is_contraction(op):
                yield node
        for node in reversed(tensors):  # the longest chain first
            if view.op(node).name == "add":
                yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        try:
            return _prove(view, anchor)
        except Declined as error:
            return Decline(error.reason, error.node, hint=error.hint)
        except Unproven:
            return None  # of most sums nobody would say that they are mixtures
        except GuardOnDataDependentSymNode:
            return Decline(SIZE_OF_DATA, anchor)


def _prove(view: GraphView, anchor: Node) -> Match | Decline | None:
    op, out_dims = view.op(anchor), fresh(value(anchor).shape, "o")
    tokens = leaves(out_dims[:-1])
    if not leaves(out_dims[-1:]):
        return None
    if op.name == "sum":
        found = summed(op, anchor, out_dims)
        if found is None:
            return None
        source, dims, axis = found
        return _along(view, anchor, out_dims, (source, dims), axis, None)
    if op.name == "add":
        return _chain(view, anchor, out_dims)
    product = pull_contraction(op, anchor, out_dims)
    sides = [(product.a, product.a_dims), (product.b, product.b_dims)]
    features, inner = set(leaves(out_dims[-1:])), set(leaves((product.inner,)))
    weighs = [not set(leaves(d)) & features and inner <= set(leaves(d)) for _, d in sides]
    if sum(weighs) != 1 or not inner:
        return None
    weight, rows = sides[weighs.index(True)], sides[weighs.index(False)]
    if not {*tokens, *inner} <= set(leaves(rows[1])):
        return None
    return _along(view, anchor, out_dims, rows, product.inner, weight)


def _along(
    view: GraphView,
    anchor: Node,
    out_dims: Dims,
    source: tuple[Node, Dims],
    axis: Dim,
    weight: tuple[Node, Dims] | None,
) -> Match | None:
    """A mixture whose rows are added up along an axis: of all experts, or of choices."""
    declined: list[tuple[int, Declined]] = []
    for dense in (True, False):
        dtype = value(anchor).dtype
        space = Space(view, dtype, leaves(out_dims[:-1]), leaves((axis,)), dense)
        try:
            placed = None if weight is None else space.locate(*weight)
            rows = rows_of(space, *source, placed)
            if not dense and view.op(rows.node).name == "gather":
                return _of_all(space, anchor, out_dims, rows)
            return _mixture(space, anchor, out_dims, _experts_of(space, rows, anchor), rows)
        except NoExpert:
            continue
        except Declined as error:
            declined.append((len(space.interior), error))
    if declined:
        raise max(declined, key=lambda found: found[0])[1]
    return None


def _experts_of(space: Space, rows: Rows, anchor: Node) -> Sequence[Expert]:
    """The experts that gave rows: one for all, or each by itself where they are stacked."""
    op = space.view.op(rows.node)
    if space.dense and op.name == "stack":
        experts = stacked(space, op, rows.node, rows.dims)
        same(experts, anchor)
        return experts
    expert = ExpertWalk(space).run(rows.node, rows.dims)
    tells = bool(expert.products[-1].matrix.experts)
    require(tells, "an axis of rows is added up that tells no experts apart", anchor)
    return [expert]


def _of_all(space: Space, anchor: Node, out_dims: Dims, rows: Rows) -> Match:
    """`gather(rows of all experts, indices)`: those of the chosen ones are taken afterwards."""
    op, node = space.view.op(rows.node), rows.node
    dim, index, source = op.args["dim"], op.args["index"], op.args["input"]
    require(isinstance(dim, int), "rows are gathered along a dimension that is no constant", node)
    at = dim % len(rows.dims)
    taken = set(leaves(rows.dims[at : at + 1]))
    require(taken == space.chosen_axes, "rows are gathered along another axis", node)
    place = space.locate(index, rows.dims)
    require(set(leaves(place.dims)) == space.row_axes, "indices differ between features", node)
    for i, (own, other) in enumerate(zip(value(source).shape, value(index).shape, strict=True)):
        require(i == at or own == other, "a part of the rows is gathered", node)
    experts = fresh(value(source).shape[at : at + 1], "e")[0]
    whole = Space(
        space.view, space.dtype, space.tokens, leaves((experts,)), True, interior=space.interior
    )
    dims = (*rows.dims[:at], experts, *rows.dims[at + 1 :])
    every = rows_of(whole, source, dims)
    require(every.weight is None and rows.weight is not None, "rows without one weight", anchor)
    found = _experts_of(whole, every, anchor)
    require(found[0].weight is None, "rows are weighted twice", anchor)
    assert rows.weight is not None
    space.interior.add(node)
    count = len(found) if len(found) > 1 else size_of(whole.chosen)
    require(isinstance(count, int), "the number of experts is a symbol", anchor)
    assert isinstance(count, int)
    mixture = Mixture(found, count, place, rows.weight, False, space.chosen, space.chosen)
    return matched(space, anchor, out_dims, mixture)


def _mixture(
    space: Space, anchor: Node, out_dims: Dims, experts: Sequence[Expert], rows: Rows
) -> Match:
    first = experts[0]
    before, after = first.weight, rows.weight
    require((before is None) != (after is None), "rows without a weight, or with two", anchor)
    weights = before if after is None else after
    assert weights is not None
    if space.dense:
        indices = Routing(space.view, space.chosen).support(weights.node, weights.dims)
        if indices is None:
            raise Declined(
                "every expert has a weight that is not known to be zero where it was not chosen",
                weights.node,
                "scatter the weights of the chosen ones into zeros, or mask the others with -inf",
            )
        choices = tuple(a for a in leaves(indices.dims) if a not in space.token_axes)
        count = len(experts) if len(experts) > 1 else size_of(space.chosen)
    else:
        indices, choices = space.indices, space.chosen
        require(indices is not None, "nothing tells which experts were chosen", anchor)
        assert indices is not None
        count = size_of(first.products[-1].matrix.experts)
    require(isinstance(count, int), "the number of experts is a symbol", anchor)
    assert isinstance(count, int)
    if space.dense and before is not None:
        kept = all(_keeps_zero(expert) for expert in experts)
        require(kept, "an expert makes something of a token that is weighted with zero", anchor)
    if space.order is not None:
        known = are_experts(space.view, indices.node, count)
        require(known, "rows are sorted by what may be no number of an expert", indices.node)
    found = Mixture(experts, count, indices, weights, space.dense, choices, space.chosen)
    return matched(space, anchor, out_dims, found)


def _adds_expert(view: GraphView, anchor: Node, out_dims: Dims) -> bool:
    """Whether what the last addition of a chain adds is an expert's."""
    op = view.op(anchor)
    inputs = [n for n in (op.args.get("input"), op.args.get("other")) if is_tensor(n)]
    single = [
        n for n in inputs if view.op(n).name != "add" and value(n).shape == value(anchor).shape
    ]
    for term in single:
        try:
            branch(Space(view, value(anchor).dtype, leaves(out_dims[:-1])), term, out_dims)
        except Declined:
            continue
        return True
    return False


def _keeps_zero(expert: Expert) -> bool:
    """Whether an expert makes zeros of zeros."""
    if any(product.bias is not None for product in expert.products):
        return False
    dtype = value(expert.products[0].node).dtype
    with eager_world():
        zeros = {name: torch.zeros(1, 1, dtype=dtype) for name in expert.activation.inputs}
        return not bool(expert.activation(**zeros).count_nonzero())


def _chain(view: GraphView, anchor: Node, out_dims: Dims) -> Match | None:
    """Experts that are written out, weighted and added up."""
    if not _adds_expert(view, anchor, out_dims):
        return None  # before the whole chain is looked at, of which there may be as many as terms
    found = terms(view, anchor)
    if len(found) < 2:
        return None
    space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
    branches: list[Branch] = []
    columns: list[tuple[Node, Dims, Dim, int]] = []
    for term in found:
        if is_zero(view, term):
            space.interior.add(term)
            continue
        try:
            branches.append(branch(space, term, out_dims))
        except NoExpert:
            return None
        cut = column(view, branches[-1].weight)
        require(cut is not None, "a weight is no column of the weights of all experts", term)
        assert cut is not None
        columns.append(cut)
    if len(branches) < 2:
        return None
    source, dims, axis, _ = columns[0]
    numbers = [c[3] for c in columns]
    alike = all(_is_column_of(source, dims, axis, c) for c in columns)
    require(alike, "weights of experts come from different tensors", anchor)
    count = value(source).shape[next(i for i, d in enumerate(dims) if set(d) & set(axis))]
    every = sorted(numbers) == list(range(count)) if isinstance(count, int) else False
    if not every and any(view.op(user).name == "add" for user in anchor.users):
        return None  # a part of a longer chain
    require(every, "not every expert is there once", anchor)
    ordered = [branches[numbers.index(e)].expert for e in range(len(numbers))]
    same(ordered, anchor)
    space.interior |= additions(view, anchor, found)
    whole = Space(view, space.dtype, space.tokens, axis, dense=True, interior=space.interior)
    weight = whole.locate(source, dims)
    return _mixture(whole, anchor, out_dims, ordered, Rows(anchor, out_dims, weight))


def _is_column_of(source: Node, dims: Dims, axis: Dim, column: tuple[Node, Dims, Dim, int]) -> bool:
    """Whether a column is one along this axis of a tensor with these axes."""
    other, other_dims, other_axis, _ = column
    names = dict(zip(leaves((other_axis,)), leaves((axis,)), strict=True))
    renamed = tuple(tuple(names.get(a, a) for a in dim) for dim in resolve(other_dims))
    return other is source and renamed == resolve(dims)


def matched(
    space: Space, anchor: Node, out_dims: Dims, found: Mixture, end: Node | None = None
) -> Match:
    """The region of a mixture, whose result is `anchor`, and complete after `end`.

    Raises:
        Declined: its tensors do not fit together.
    """
    view, first = space.view, found.experts[0]
    every = set(leaves((space.tokens,)))
    tokens = tuple(a for a in leaves(first.x.dims) if a in every)
    require(set(tokens) == every, "rows of several tokens start from the same numbers", anchor)
    separate = len(found.experts) > 1
    features = leaves(out_dims[-1:])
    places: dict[str, tuple[Place, Dims]] = {
        "x": (first.x, (tokens, first.features)),
        "indices": (found.indices, (tokens, found.choices)),
    }
    if found.weights is not None:
        name = "dense" if found.dense else "weights"
        places[name] = (found.weights, (tokens, found.along))
    for e, expert in enumerate(found.experts):
        for p, product in enumerate(expert.products):
            suffix = f"_{e}" if separate else ""
            last = p == len(expert.products) - 1
            out = features if last else product.out
            places[f"m{p}{suffix}"] = (
                product.matrix,
                (*_experts(product.matrix, separate), out, product.inner),
            )
            if product.bias is not None:
                places[f"b{p}{suffix}"] = (product.bias, (*_experts(product.bias, separate), out))
    dtypes = {value(p.node).dtype for expert in found.experts for p in expert.products}
    require(len(dtypes) == 1, "products of an expert have different dtypes", anchor)
    (product_dtype,) = dtypes
    operands = {
        name: _operand(view, end or anchor, place, target)
        for name, (place, target) in places.items()
    }
    spec = MoeSpec(
        found.count,
        tuple(first.columns),
        first.activation,
        tuple(p.bias is not None for p in first.products),
        separate,
        first.weight is not None,
        value(anchor).dtype,
        product_dtype,
    )
    _require_dtypes(operands, anchor)
    interior = frozenset({anchor, *space.interior, *(n for e in found.experts for n in e.interior)})
    return Match(
        pattern=MixtureOfExperts.id,
        anchor=anchor,
        nodes=interior,
        outputs=(anchor,),
        calls=(Call(spec, operands),),
        result=(tokens, features),
        dims=resolve(out_dims),
        facts=_facts(spec, found),
        native=space.order is not None,
    )


def _experts(place: Place, separate: bool) -> tuple[Dim, ...]:
    require(separate or bool(place.experts), "experts share a tensor", place.node)
    return () if separate else (place.experts,)


def _operand(view: GraphView, anchor: Node, place: Place, target: Dims) -> Operand:
    node = place.node
    written = view.mutated_between(node, view.order[node] + 1, view.order[anchor])
    require(written is None, "a tensor is written to before the experts have read it", node)
    missing = set(leaves(target)) - set(leaves(place.dims))
    require(not missing, "a tensor is the same for several tokens or experts", node)
    return Operand(node, resolve(place.dims), resolve(target))


def _require_dtypes(operands: dict[str, Operand], anchor: Node) -> None:
    for name, operand in operands.items():
        dtype = value(operand.node).dtype
        if name != "indices" and dtype not in _DTYPES:
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
