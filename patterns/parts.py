"""Equal parts of one tensor: `chunk`, `split`, `unbind`, `narrow`, slices, every other element.

An operator that has all of them reads the tensor itself, and its gradient is one tensor, too. Two
parts are the members of pairs, as a rotary embedding reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sympy
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Size, Unproven, quotient, same_size
from fuser.graph.index import full_index
from fuser.graph.index_rules import size_expr
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

MOST = 8
LISTS = ("chunk", "split", "unbind")


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a tensor.

    Attributes:
        source: the tensor.
        dim: along which it is cut.
        index: which part it is.
        count: how many there are.
        in_turn: elements of the parts take turns; else parts follow each other.
        kept: the part still has the dimension.
        made_by: operators between.
    """

    source: Node
    dim: int
    index: int
    count: int
    in_turn: bool = False
    kept: bool = True
    made_by: tuple[Node, ...] = ()

    @property
    def cut(self) -> tuple[object, ...]:
        """What it is a part of."""
        return self.source, self.dim, self.count, self.in_turn, self.kept

    def whole(self, dims: Dims, parts: Axis) -> Dims:
        """Axes of the tensor, given those of this part and the one that counts parts."""
        own = dims[self.dim] if self.kept else ()
        along = (*own, parts) if self.in_turn else (parts, *own)
        return (*dims[: self.dim], along, *dims[self.dim + self.kept :])


def complete(view: GraphView, nodes: Iterable[Node]) -> dict[Node, Part]:
    """Those among some tensors that are parts of a tensor of which all parts are among them."""
    found = {node: part for node in nodes if (part := _known(view, node)) is not None}
    indices: defaultdict[object, set[int]] = defaultdict(set)
    for part in found.values():
        indices[part.cut].add(part.index)
    return {node: part for node, part in found.items() if len(indices[part.cut]) == part.count}


def _known(view: GraphView, node: Node) -> Part | None:
    """What a tensor is a part of, and the gradient goes the same way."""
    part = part_of(view, node)
    differs = part and value(node).requires_grad is not value(part.source).requires_grad
    return None if differs else part


def part_of(view: GraphView, node: Node) -> Part | None:
    """What a tensor is a part of."""
    op = view.op(node)
    source = op.args.get("input")
    if not is_tensor(node) or op.inplace:
        return None
    try:
        if op.name == "getitem" and isinstance(source, Node) and not is_tensor(source):
            return _of_list(view, op, node, source)
        if not is_tensor(source):
            return None
        if op.name == "narrow":
            return _slice(source, op.args["dim"], slice(op.args["start"], None), (node,))
        if op.name == "select":
            return _position(source, op.args["dim"], op.args["index"], (node,))
        return _indexed(source, op.args["index"], (node,)) if op.kind is Kind.SLICE else None
    except Unproven:
        return None


def part_at(source: Node, index: Any) -> Part | None:
    """What an index takes of a tensor, where something is written to."""
    try:
        return _indexed(source, index, ())
    except Unproven:
        return None


def _of_list(view: GraphView, op: Op, node: Node, cut: Node) -> Part | None:
    of, index = view.op(cut), op.args.get("index")
    source, dim = of.args.get("input"), of.args.get("dim", 0)
    if of.name not in LISTS or not is_tensor(source) or not isinstance(index, int):
        return None
    pieces = value(cut)
    if not isinstance(dim, int) or not 1 < len(pieces) <= MOST:
        return None
    dim, kept = dim % value(source).ndim, of.name != "unbind"
    sizes = [to_expr(piece.shape[dim]) for piece in pieces] if kept else []
    if not all(same_size(size, sizes[0]) for size in sizes):
        return None
    index %= len(pieces)
    return Part(source, dim, index, len(pieces), kept=kept, made_by=(node, cut))


def _indexed(source: Node, index: Any, made_by: tuple[Node, ...]) -> Part | None:
    parts = full_index(index, value(source).ndim)
    cut = [i for i, part in enumerate(parts) if part != slice(None)]
    if len(cut) != 1 or len(parts) != value(source).ndim:
        return None
    (dim,), part = cut, parts[cut[0]]
    take = _slice if isinstance(part, slice) else _position
    return take(source, dim, part, made_by)


def _position(source: Node, dim: Any, index: Any, made_by: tuple[Node, ...]) -> Part | None:
    """One position of a dimension that has a few."""
    if not isinstance(dim, int) or not isinstance(index, int):
        return None
    dim %= value(source).ndim
    size = value(source).shape[dim]
    if not isinstance(size, int) or not 1 < size <= MOST or index not in range(-size, size):
        return None
    return Part(source, dim, index % size, size, kept=False, made_by=made_by)


def _slice(source: Node, dim: Any, part: slice, made_by: tuple[Node, ...]) -> Part | None:
    step = 1 if part.step is None else part.step
    if not isinstance(dim, int) or not isinstance(step, int) or step < 1:
        return None
    dim %= value(source).ndim
    size = to_expr(value(source).shape[dim])
    first = size_expr(0 if part.start is None else part.start)
    if first.is_negative:
        first = size + first
    length = to_expr(value(made_by[0]).shape[dim]) if made_by else _length(size, first, part)
    if step > 1:
        count, index = step, first
        if not same_size(size, step * length):
            return None
    else:
        count = quotient(size, length)
        index = quotient(first, length) if not same_size(first, 0) else 0
    known = isinstance(count, int) and 1 < count <= MOST and index in range(count)
    return Part(source, dim, int(index), int(count), step > 1, made_by=made_by) if known else None


def _length(size: Size, first: sympy.Expr, part: slice) -> Size:
    """Elements of a slice.

    Raises:
        Unproven: it is not known where it ends.
    """
    given = (part.start, part.stop, part.step)
    if isinstance(size, int) and all(end is None or isinstance(end, int) for end in given):
        return len(range(*part.indices(size)))
    end = size if part.stop is None else size_expr(part.stop)
    if not isinstance(quotient(size, end), int):
        raise Unproven("a slice that may end beyond the tensor")
    return end - first if part.step in (None, 1) else quotient(end, part.step)
