"""Experts that are written out one after the other: stacked, or added up in a chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, fresh, leaves, renamed, resolve, same_size, size_of
from fuser.graph.ops import Kind, Op, value
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

from ..cuts import known_cut
from .expert import Expert, ExpertWalk, same_rows
from .products import Product
from .rows import rows_of
from .space import Place, Space, require
from .weights import Weights, same_weights


@dataclass(frozen=True)
class Kept:
    """A mask of rows: they are zero where it is false; or, where it is `inverted`, where it is
    true."""

    mask: Place
    inverted: bool


@dataclass(frozen=True)
class Branch:
    """One expert, what its rows are weighted with, and masks of them."""

    expert: Expert
    weights: Weights
    kept: tuple[Kept, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Weights of experts that are columns of one tensor.

    Attributes:
        source, dims: the tensor; `axis` is that of its columns.
        count: how many it has.
        of: the branches whose weights are columns, by their numbers.
        rest: by what else rows are multiplied, the same for all.
    """

    source: Node
    dims: Dims
    axis: Dim
    count: Any
    of: Sequence[tuple[int, Branch]]
    rest: Weights

    @property
    def is_complete(self) -> bool:
        """Whether every expert is there once."""
        numbers = sorted(number for number, _ in self.of)
        return isinstance(self.count, int) and numbers == list(range(self.count))


def stacked(space: Space, node: Node, dims: Dims) -> tuple[list[Expert], Weights] | None:
    """The experts that a node stacks along the axis that tells rows of a token apart, and weights
    that rows have before they are stacked; None where it does not."""
    op = space.view.op(node)
    tensors, dim = op.args.get("tensors"), op.args.get("dim", 0)
    if not space.dense or not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        return None
    at = dim % len(dims)
    if op.name not in ("stack", "cat"):
        return None
    count = len(leaves((space.chosen,)))
    axes, rest = leaves((dims[at],))[:count], leaves((dims[at],))[count:]
    if op.name == "cat":
        sizes = [to_expr(value(tensor).shape[at]) for tensor in tensors]
        same = all(same_size(size, size_of(rest)) for size in sizes)
        if not same or (rest and set(axes) != space.chosen_axes):
            return None
    else:
        axes, rest = leaves((dims[at],)), ()
    require(set(axes) == space.chosen_axes, "another axis is stacked", node)
    own = (*dims[:at], *([rest] if op.name == "cat" else []), *dims[at + 1 :])
    space.interior.add(node)
    found: list[Branch] = []
    for tensor in tensors:
        alone = Space(space.view, space.dtype, space.tokens, interior=space.interior)
        found.append(branch(alone, tensor, own))
    experts, common = [b.expert for b in found], found[0].weights
    if all(same_weights(b.weights, common) for b in found):
        return experts, common
    columns = columns_of(space.view, found)
    inside = "weights within a stack are no columns of one tensor in its order"
    require(len(columns) == 1 and len(columns[0].of) == len(found), inside, node)
    (own_columns,) = columns
    in_order = [number for number, _ in own_columns.of] == list(range(len(found)))
    require(own_columns.is_complete and in_order, inside, node)
    axis = dict(zip(leaves((own_columns.axis,)), axes, strict=True))
    factor = space.locate(own_columns.source, renamed(own_columns.dims, axis))
    return experts, Weights((factor,)).times(own_columns.rest)


def branch(space: Space, node: Node, dims: Dims) -> Branch:
    """An expert's rows, weighted or not."""
    rows = rows_of(space, node, dims)
    expert = ExpertWalk(space).run(rows.node, rows.dims)
    return Branch(expert, rows.weights.times(expert.inside))


def columns_of(view: GraphView, branches: Sequence[Branch]) -> list[Columns]:
    """Branches by the tensors of which their weights are columns, the most first; those of one
    tensor have all other weights in common."""
    found: list[Columns] = []
    for b in branches:
        for i, factor in enumerate(b.weights.factors):
            cut = column(view, factor)
            if cut is None:
                continue
            source, dims, axis, number = cut
            rest = b.weights.without(i)
            at = next((k for k, c in enumerate(found) if _joins(c, cut, rest)), None)
            if at is None:
                size = next(n for n, d in zip(value(source).shape, dims, strict=True) if d == axis)
                found.append(Columns(source, dims, axis, size, [(number, b)], rest))
            else:
                found[at] = replace(found[at], of=[*found[at].of, (number, b)])
    return sorted(found, key=lambda c: -len(c.of))


def _joins(known: Columns, cut: tuple[Node, Dims, Dim, int], rest: Weights) -> bool:
    """Whether a column is another one of the same tensor."""
    source, dims, axis, _ = cut
    names = dict(zip(leaves((axis,)), leaves((known.axis,)), strict=False))
    same = source is known.source and renamed(dims, names) == resolve(known.dims)
    return same and same_weights(rest, known.rest)


def column(view: GraphView, place: Place) -> tuple[Node, Dims, Dim, int] | None:
    """The tensor of which a weight is one column: its axes, that of the columns, and which."""
    op = view.op(place.node)
    if op.kind is Kind.SLICE and op.name == "getitem":
        return _indexed(op, place.dims)
    if op.name == "select" and type(op.args.get("dim")) is int:
        source, dim = op.args["input"], op.args["dim"] % value(op.args["input"]).ndim
        parts = [slice(None)] * dim + [op.args["index"]]
        return _taken(source, parts, place.dims)
    source = place.node.args[0] if place.node.args else None
    if getattr(place.node.target, "__name__", "") == "getitem" and isinstance(source, Node):
        cut = view.op(source)
        if cut.name == "unbind" and type(cut.args.get("dim", 0)) is int:
            dim = cut.args.get("dim", 0) % value(cut.args["input"]).ndim
            parts = [slice(None)] * dim + [place.node.args[1]]
            return _taken(cut.args["input"], parts, place.dims)
    cut = known_cut(view, place.node)
    if cut is not None and cut.length == 1:
        parts = [slice(None)] * cut.dim + [slice(cut.start, cut.start + 1)]
        return _taken(cut.source, parts, place.dims)
    return None


def _indexed(op: Op, dims: Dims) -> tuple[Node, Dims, Dim, int] | None:
    source, index = op.args["input"], op.args["index"]
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        missing = value(source).ndim - sum(p is not None for p in parts) + 1
        parts[at : at + 1] = [slice(None)] * missing
    return _taken(source, parts, dims)


def _taken(source: Node, parts: list[Any], dims: Dims) -> tuple[Node, Dims, Dim, int] | None:
    """One column of a tensor by an index for each dimension, the last ones may be missing."""
    shape = value(source).shape
    parts = parts + [slice(None)] * (len(shape) - sum(p is not None for p in parts))
    left, whole = list(dims), list[Dim]()
    found: tuple[Dim, int] | None = None
    for part in parts:
        size: Any = shape[len(whole)] if len(whole) < len(shape) else None
        if part is None or part == slice(None):
            dim = left.pop(0)
            whole += [] if part is None else [dim]
            continue
        number = _number(part, size)
        if number is None or found is not None:
            return None
        if isinstance(part, slice):
            left.pop(0)
        found = (fresh((size,), "e")[0], number)
        whole.append(found[0])
    return None if found is None else (source, tuple(whole), *found)


def _number(part: Any, size: Any) -> int | None:
    """The position that `i` or `i : i + 1` takes of a dimension."""
    if not isinstance(size, int):
        return None
    if type(part) is int:
        return part % size
    if isinstance(part, slice) and all(
        isinstance(n, (int, type(None))) for n in (part.start, part.stop, part.step)
    ):
        start, stop, step = part.indices(size)
        return start if (stop - start, step) == (1, 1) else None
    return None


def same(experts: Sequence[Expert], node: Node) -> None:
    """Experts that differ by their tensors alone.

    Raises:
        Declined: they differ otherwise.
    """
    first = experts[0]
    for expert in experts:
        require(
            (expert.activation, tuple(expert.columns)) == (first.activation, tuple(first.columns)),
            "experts have different activations", node,
        )  # fmt: skip
        given = same_rows(first.x, first.features, expert.x, expert.features)
        if not given and expert.unread is not None:
            raise expert.unread
        require(given, "experts are given different tensors", node)
        shapes = [_shapes(e) for e in (expert, first)]
        require(shapes[0] == shapes[1], "experts have tensors of different shapes", node)


def _shapes(expert: Expert) -> list[object]:
    found: list[object] = []
    for product in expert.products:
        found.append((tuple(value(product.matrix.node).shape), len(leaves(product.matrix.dims))))
        bias = product.bias
        found.append(None if bias is None else tuple(value(bias.node).shape))
        found.append(value(product.matrix.node).dtype)
    return found


def in_one(view: GraphView, experts: Sequence[Expert]) -> Sequence[Expert]:
    """One expert for all, where their tensors are those of one stack each."""
    count, first = len(experts), experts[0]
    products: list[Product] = []
    for p, product in enumerate(first.products):
        if not all(_arranged(e.products[p]) == _arranged(product) for e in experts):
            return experts
        matrix = _stack(view, [e.products[p].matrix for e in experts])
        biases = [e.products[p].bias for e in experts]
        known = [b for b in biases if b is not None]
        bias = _stack(view, known) if len(known) == count else None
        if matrix is None or (known and bias is None):
            return experts
        products.append(replace(product, matrix=matrix, bias=bias))
    return [replace(first, products=products)]


def same_tensors(one: Expert, other: Expert) -> bool:
    """Whether two experts have the same matrices and biases."""
    pairs = list(zip(one.products, other.products, strict=False))
    return len(one.products) == len(other.products) and all(
        a.matrix.node is b.matrix.node
        and (a.bias and a.bias.node) is (b.bias and b.bias.node)
        and _arranged(a) == _arranged(b)
        for a, b in pairs
    )


def _arranged(product: Product) -> list[bool] | Product:
    """Which dimensions of a matrix are contracted; where one is several axes, the product itself,
    which is like no other."""
    inner, dims = set(leaves((product.inner,))), resolve(product.matrix.dims)
    return [set(dim) <= inner for dim in dims] if all(len(d) < 2 for d in dims) else product


def _stack(view: GraphView, places: Sequence[Place]) -> Place | None:
    """A tensor of which each of these is the part of one expert, in order."""
    parts = [column(view, place) for place in places]
    whole = parts[0]
    if whole is None or value(whole[0]).shape[0] != len(parts):
        return None
    for number, part in enumerate(parts):
        if part is None or part[0] is not whole[0] or part[3] != number or part[1][0] != part[2]:
            return None
    return Place(whole[0], whole[1], whole[2])
