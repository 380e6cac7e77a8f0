"""Which expert a mask of choices, or of tokens, belongs to.

indices == e                one_hot(indices)[..., e]            (one_hot(choice) * room)[:, e]
(indices == e).any(-1)      (indices == e).sum(-1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, leaves, resolve, size_of
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView
from fuser.turns import turn

from .branches import column
from .copies import CASTS, COPIES
from .routing import Routing, summed
from .space import Place, first_alike

_LIMIT = 64
_WHOLE = {torch.int32, torch.int64}


@dataclass(frozen=True)
class Chosen:
    """Which expert a mask belongs to.

    Attributes:
        indices: which expert each choice of each token is.
        expert: where the mask is true, they are this one.
        classes: how many there are, if the mask tells.
        kept: what else must not be zero at the expert that a choice is, with an axis of experts.
        choices: their axis, where the mask is of tokens, of which one choice has to be the expert.
    """

    indices: Place
    expert: int
    classes: int | None = None
    kept: Place | None = None
    choices: Dim = ()


@dataclass(frozen=True)
class Mark:
    """Which expert the tokens of a mask chose, or did not choose.

    Attributes:
        indices: which expert each choice of each token is.
        choices: their axis, where one of them has to be the expert; none where there is one.
        expert: which of the experts it is.
        negated: the mask is of the other tokens.
        counts: it is no mask, but tells how many of the choices are the expert.
    """

    indices: Place
    choices: Dim
    expert: int
    negated: bool = False
    counts: bool = False


def mark(view: GraphView, place: Place) -> Mark | None:
    """What a mask of tokens tells of an expert."""
    node, dims = place.node, resolve(place.dims)
    for read in (chosen, others):
        known = read(view, node, dims)
        if known is not None and known.kept is None:
            return Mark(known.indices, (), known.expert, negated=read is others)
    counts, op = True, view.op(node)
    for _ in range(_LIMIT):
        if view.is_written(node) or op.inplace:
            return None
        if op.kind is Kind.VIEW:
            node, dims = pull_view(op, node, dims)
        elif op.name in (*COPIES, *CASTS, "int", "long"):
            node = op.args["input"]
        elif op.name in ("gt", "ne") and op.args.get("other") == 0:
            node, counts = op.args["input"], False
        else:
            break
        op = view.op(node)
    inner = summed(op, node, dims, ("sum", "any", "amax"))
    known = None if inner is None else chosen(view, *inner[:2])
    if inner is None or known is None or known.kept is not None:
        return None
    counts &= op.name == "sum" and value(node).dtype is not torch.bool
    return Mark(known.indices, inner[2], known.expert, counts=counts)


def told(view: GraphView, node: Node, dims: Dims) -> Chosen | None:
    """Which expert a mask is of, each of whose elements is a choice of a token, or a token."""
    found = chosen(view, node, dims)
    if found is not None:
        return found
    known = mark(view, Place(node, dims))
    if known is None or known.negated or known.counts or value(node).dtype is not torch.bool:
        return None
    return Chosen(known.indices, known.expert, choices=known.choices)


def chosen(view: GraphView, node: Node, dims: Dims) -> Chosen | None:
    """Which expert a mask is of, each of whose elements is a choice of a token."""
    compared = False
    for _ in range(_LIMIT):
        if view.is_written(node):
            return None
        op = view.op(node)
        if op.kind is Kind.VIEW and not op.inplace:
            node, dims = pull_view(op, node, dims)
        elif op.name in (*COPIES, *CASTS, "bool", "int", "long") and is_tensor(op.args["input"]):
            node = op.args["input"]
        elif op.name in ("ne", "gt") and op.args.get("other") == 0 and not compared:
            node, compared = op.args["input"], True
        elif op.name == "eq" and not compared:
            found = _equal(view, op, dims)
            if found is not None or op.args.get("other") != 1:
                return found
            node, compared = op.args["input"], True
        else:
            return _hot(view, node, dims)
        dims = resolve(dims)
    return None


def _equal(view: GraphView, op: Op, dims: Dims) -> Chosen | None:
    """`indices == e`."""
    sides = [op.args.get("input"), op.args.get("other")]
    known = [number_of(view, side) for side in sides]
    tensors = [s for s, n in zip(sides, known, strict=True) if is_tensor(s) and n is None]
    numbers = [n for n in known if n is not None]
    if len(tensors) != 1 or len(numbers) != 1 or value(tensors[0]).dtype not in _WHOLE:
        return None
    if _hot(view, tensors[0], dims) is not None:
        return None
    return Chosen(peeled(view, tensors[0], dims), numbers[0])


def number_of(view: GraphView, side: Any) -> int | None:
    """The number that is compared with: Python's, or that of a turn, of which a tensor has one."""
    while isinstance(side, Node):
        one = is_tensor(side) and all(type(n) is int and n == 1 for n in value(side).shape)
        if not one or view.is_written(side):
            return None
        if side.target is turn:
            side = side.args[1]
            break
        op = view.op(side)
        plain = op.kind in (Kind.VIEW, Kind.SLICE) and not op.inplace
        side = op.args.get("input") if plain else None
    return side if type(side) is int else None


def others(view: GraphView, node: Node, dims: Dims) -> Chosen | None:
    """Of which expert a mask is the inverse, each of whose elements is a choice of a token."""
    for _ in range(_LIMIT):
        op = view.op(node)
        if view.is_written(node) or op.inplace:
            return None
        if op.kind is Kind.VIEW:
            node, dims = pull_view(op, node, dims)
        elif op.name in ("bitwise_not", "logical_not"):
            return chosen(view, op.args["input"], resolve(dims))
        else:
            return _equal(view, op, resolve(dims)) if op.name == "ne" else None
    return None


def _hot(view: GraphView, node: Node, dims: Dims) -> Chosen | None:
    """One column of `one_hot(indices)`."""
    place = _cast(view, node, dims)
    cut = None if place is None else column(view, place)
    if cut is None:
        return None
    found, classes = hot(view, Place(cut[0], cut[1], cut[2])), size_of(cut[2])
    if found is None or not isinstance(classes, int):
        return None
    return Chosen(found[0], cut[3], classes, found[1])


def hot(view: GraphView, place: Place) -> tuple[Place, Place | None] | None:
    """The indices of which a mask is `one_hot`, and the mask itself where it rules some out."""
    whole = _cast(view, place.node, place.dims)
    if whole is None:
        return None
    indices = Routing(view, place.experts).support(whole.node, whole.dims)
    if indices is None or set(leaves(indices.dims)) - set(leaves(whole.dims)):
        return None  # of several choices one mask
    found = peeled(view, indices.node, indices.dims)
    if view.op(whole.node).name == "one_hot":
        return found, None
    kept = Place(whole.node, whole.dims, place.experts)
    return (found, kept) if _is_mask(view, whole.node) else None


def _is_mask(view: GraphView, node: Node, depth: int = 0) -> bool:
    """Whether all elements of a tensor are zero or one, so that no cast makes them others."""
    if value(node).dtype is torch.bool:
        return True
    op = view.op(node)
    if op.name == "one_hot":
        return True
    passed = op.kind is Kind.VIEW or op.name in (*COPIES, *CASTS, "int", "long", "mul")
    inputs = node.all_input_nodes
    whole = passed and depth < _LIMIT and all(map(is_tensor, inputs)) and len(inputs) <= 2
    plain = op.name != "mul" or len(inputs) == 2
    return whole and plain and all(_is_mask(view, n, depth + 1) for n in inputs[:2])


def _cast(view: GraphView, node: Node, dims: Dims) -> Place | None:
    """A tensor of zeros and ones without its views and casts."""
    for _ in range(_LIMIT):
        op = view.op(node)
        if view.is_written(node):
            return None
        if op.kind is Kind.VIEW and not op.inplace:
            node, dims = pull_view(op, node, dims)
        elif op.name in (*COPIES, *CASTS, "bool", "int", "long"):
            node = op.args["input"]
        else:
            break
    return Place(node, resolve(dims))


def peeled(view: GraphView, node: Node, dims: Dims) -> Place:
    """Indices without their views and copies, so that two spellings are one tensor."""
    for _ in range(_LIMIT):
        op = view.op(node)
        if view.is_written(node):
            break
        if op.kind is Kind.VIEW and not op.inplace:
            try:
                node, dims = pull_view(op, node, dims)
            except Unproven:
                break
        elif op.name in COPIES or (
            op.name in ("to", "int", "long")
            and {value(node).dtype, value(op.args["input"]).dtype} <= _WHOLE
        ):
            node = op.args["input"]
        else:
            break
    return Place(first_alike(view, node), resolve(dims))
