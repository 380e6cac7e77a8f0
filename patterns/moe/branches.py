"""Experts that are written out one after the other: stacked, or added up in a chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, fresh, leaves
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView

from ..declined import Declined
from .expert import Expert, ExpertWalk, NoExpert, same_rows
from .rows import rows_of
from .space import Place, Space, part_of, require


@dataclass(frozen=True)
class Branch:
    """One expert and the weights of all tokens for it."""

    expert: Expert
    weight: Place


def stacked(space: Space, op: Op, node: Node, dims: Dims) -> list[Expert]:
    """The experts of `stack([...], dim)` along the axis that tells rows of a token apart."""
    tensors, dim = op.args.get("tensors"), op.args.get("dim", 0)
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int):
        raise Declined("a stack along a dimension that is no constant", node)
    at = dim % len(dims)
    require(set(leaves((dims[at],))) == space.chosen_axes, "another axis is stacked", node)
    own = (*dims[:at], *dims[at + 1 :])
    space.interior.add(node)
    found: list[Expert] = []
    for tensor in tensors:
        alone = Space(space.view, space.dtype, space.tokens, interior=space.interior)
        found.append(ExpertWalk(alone).run(tensor, own))
    return found


def terms(view: GraphView, node: Node) -> list[Node]:
    """What a chain of additions adds up, first term first, and the additions as well at the end."""
    found: list[Node] = []
    pending = [node]
    while pending:
        current = pending.pop()
        op = view.op(current)
        inputs = [op.args.get("input"), op.args.get("other")]
        inputs = [n for n in inputs if is_tensor(n) or n != 0]  # Python's sum starts with 0
        inner = current is node or len(current.users) == 1
        plain = op.name == "add" and op.args.get("alpha", 1) == 1 and all(map(is_tensor, inputs))
        if plain and inner and value(current).shape == value(node).shape:
            pending += [n for n in reversed(inputs) if is_tensor(n)]
        else:
            found.append(current)
    return found


def is_zero(view: GraphView, node: Node) -> bool:
    """Whether a term is what a sum starts from: zeros that nobody else writes to."""
    name = str(getattr(node.target, "__name__", node.target))
    return name in ("zeros", "zeros_like", "new_zeros") and len(node.users) == 1


def additions(view: GraphView, node: Node, found: Sequence[Node]) -> set[Node]:
    """The additions of a chain with these terms."""
    known, pending = set(found), [node]
    passed: set[Node] = set()
    while pending:
        current = pending.pop()
        if current not in known and current not in passed:
            passed.add(current)
            op = view.op(current)
            pending += [n for n in (op.args["input"], op.args["other"]) if is_tensor(n)]
    return passed


def branch(space: Space, node: Node, dims: Dims) -> Branch:
    """One term of a sum: an expert's rows, weighted."""
    rows = rows_of(space, node, dims)
    if rows.weight is None:
        raise NoExpert("an expert without a weight", node)
    return Branch(ExpertWalk(space).run(rows.node, rows.dims), rows.weight)


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
    part = part_of(view, place.node)
    if part is not None and part.step == 1 and part.stop == part.start + 1:
        dim = part.dim % value(part.source).ndim
        parts = [slice(None)] * dim + [slice(part.start, part.stop)]
        return _taken(part.source, parts, place.dims)
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
        size = shape[len(whole)] if len(whole) < len(shape) else None
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
