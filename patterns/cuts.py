"""What is cut out of a tensor along one dimension: `narrow`, slices, and pieces of `chunk` and
`split`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sympy
from torch.fx import Node

from fuser.graph.axes import Size, Unproven, quotient
from fuser.graph.index import full_index
from fuser.graph.index_rules import size_expr
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr


@dataclass(frozen=True)
class Cut:
    """Elements at equal distances along one dimension of a tensor.

    Attributes:
        source: the tensor.
        dim: along which it is cut, from 0 on.
        start: the first element.
        length: how many there are.
        step: from one to the next.
        made_by: operators between.
    """

    source: Node
    dim: int
    start: Size
    length: Size
    step: int = 1
    made_by: tuple[Node, ...] = field(default=(), compare=False)

    @property
    def size(self) -> Size:
        """Of the dimension."""
        return to_expr(value(self.source).shape[self.dim])

    @property
    def is_known(self) -> bool:
        """Whether all sizes are numbers."""
        return all(isinstance(n, int) for n in (self.start, self.length, self.size))

    @property
    def bounds(self) -> tuple[int, int | None, int]:
        """Start, stop and step, where all sizes are known."""
        assert isinstance(self.start, int)
        assert isinstance(self.length, int)
        stop = self.start + self.step * self.length
        return self.start, None if stop >= self.size else stop, self.step


def taken_of(view: GraphView, node: Node) -> tuple[Op, Node] | None:
    """The operator that gives a tensor, and the tensor or list that it may take it of."""
    op = view.op(node)
    source = op.args.get("input")
    if not is_tensor(node) or op.inplace or not isinstance(source, Node):
        return None
    return op, source


def cut_of(view: GraphView, node: Node) -> Cut | None:
    """What a node cuts out of a tensor, if it does nothing else."""
    taken = taken_of(view, node)
    if taken is None:
        return None
    op, source = taken
    try:
        if op.name == "getitem" and not is_tensor(source):
            return _piece(view, op, node, source)
        if not is_tensor(source):
            return None
        if op.name == "narrow":
            return _slice(source, op.args["dim"], slice(op.args["start"], None), node)
        return _indexed(source, op.args["index"], node) if op.kind is Kind.SLICE else None
    except Unproven:
        return None


def known_cut(view: GraphView, node: Node) -> Cut | None:
    """The same, of sizes that are numbers."""
    cut = cut_of(view, node)
    return cut if cut is not None and cut.is_known else None


def cut_at(source: Node, index: Any) -> Cut | None:
    """What an index cuts out of a tensor, where something is written to."""
    try:
        return _indexed(source, index, None)
    except Unproven:
        return None


def one_index(index: Any, rank: int) -> tuple[int, Any] | None:
    """The only dimension that an index does not take as a whole, and what it takes of it.

    Raises:
        Unproven: the index is of an unusual kind.
    """
    parts = full_index(index, rank)
    cut = [dim for dim, part in enumerate(parts) if part != slice(None)]
    return (cut[0], parts[cut[0]]) if len(cut) == 1 and len(parts) == rank else None


def _piece(view: GraphView, op: Op, node: Node, pieces: Node) -> Cut | None:
    of, index = view.op(pieces), op.args.get("index")
    source, dim = of.args.get("input"), of.args.get("dim", 0)
    if of.name not in ("chunk", "split") or not is_tensor(source):
        return None
    if not isinstance(dim, int) or not isinstance(index, int):
        return None
    sizes = [to_expr(piece.shape[dim]) for piece in value(pieces)]
    index %= len(sizes)
    start, made_by = to_expr(sum(sizes[:index])), (node, pieces)
    return Cut(source, dim % value(source).ndim, start, sizes[index], 1, made_by)


def _indexed(source: Node, index: Any, node: Node | None) -> Cut | None:
    found = one_index(index, value(source).ndim)
    if found is None or not isinstance(found[1], slice):
        return None
    return _slice(source, *found, node)


def _slice(source: Node, dim: Any, part: slice, node: Node | None) -> Cut | None:
    step = 1 if part.step is None else part.step
    if not isinstance(dim, int) or not isinstance(step, int) or step < 1:
        return None
    dim %= value(source).ndim
    size = to_expr(value(source).shape[dim])
    start = _start(size, part.start)
    if node is None:
        return Cut(source, dim, start, _length(size, start, part), step)
    return Cut(source, dim, start, to_expr(value(node).shape[dim]), step, (node,))


def _start(size: Size, given: Any) -> Size:
    start = to_expr(size_expr(0 if given is None else given))
    if isinstance(size, int) and isinstance(start, int):
        return slice(start, None).indices(size)[0]
    return to_expr(size + start) if sympy.sympify(start).is_negative else start


def _length(size: Size, start: Size, part: slice) -> Size:
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
    return end - start if part.step in (None, 1) else quotient(end, part.step)
