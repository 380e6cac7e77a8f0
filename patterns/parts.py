"""Equal parts of one tensor: `chunk`, `split`, `unbind`, `narrow`, slices, every other element.

An operator that has all of them reads the tensor itself, and its gradient is one tensor, too. Two
parts are the members of pairs, as a rotary embedding reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Unproven, quotient, same_size
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

from .cuts import Cut, cut_at, cut_of, one_index, taken_of

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
    taken = taken_of(view, node)
    if taken is None:
        return None
    op, source = taken
    if op.name == "getitem" and not is_tensor(source):
        return _of_list(view, op, node, source)
    if op.name == "select":
        return _position(source, op.args["dim"], op.args["index"], (node,))
    if op.kind is Kind.SLICE and op.name != "narrow":
        found = _at_index(source, op.args["index"], (node,))
        if found is not None:
            return found
    return _equal(cut_of(view, node))


def part_at(source: Node, index: Any) -> Part | None:
    """What an index takes of a tensor, where something is written to."""
    return _at_index(source, index, ()) or _equal(cut_at(source, index))


def _at_index(source: Node, index: Any, made_by: tuple[Node, ...]) -> Part | None:
    """The one position that an index takes of a dimension that has a few."""
    try:
        at = one_index(index, value(source).ndim)
    except Unproven:
        return None
    return None if at is None else _position(source, *at, made_by)


def _of_list(view: GraphView, op: Op, node: Node, pieces: Node) -> Part | None:
    """One of several tensors of equal sizes, known or not."""
    cut, index, count = view.op(pieces), op.args.get("index"), len(value(pieces))
    if not isinstance(index, int) or not 1 < count <= MOST:
        return None
    if cut.name == "unbind":
        made_by, source = (node, pieces), cut.args["input"]
        return _position(source, cut.args.get("dim", 0), index, made_by)
    found = cut_of(view, node)
    if found is None:
        return None
    sizes = [to_expr(piece.shape[found.dim]) for piece in value(pieces)]
    if not all(same_size(size, found.length) for size in sizes):
        return None
    return Part(found.source, found.dim, index % count, count, made_by=found.made_by)


def _position(source: Node, dim: Any, index: Any, made_by: tuple[Node, ...]) -> Part | None:
    """One position of a dimension that has a few."""
    if not isinstance(dim, int) or not isinstance(index, int):
        return None
    dim %= value(source).ndim
    size = value(source).shape[dim]
    if not isinstance(size, int) or not 1 < size <= MOST or index not in range(-size, size):
        return None
    return Part(source, dim, index % size, size, kept=False, made_by=made_by)


def _equal(cut: Cut | None) -> Part | None:
    """Which of equal parts a cut is."""
    if cut is None:
        return None
    in_turn, count, index = cut.step > 1, cut.step, cut.start
    if in_turn and not same_size(cut.size, cut.step * cut.length):
        return None
    if not in_turn:
        try:
            count = quotient(cut.size, cut.length)
            index = 0 if same_size(cut.start, 0) else quotient(cut.start, cut.length)
        except Unproven:
            return None
    if not isinstance(count, int) or not 1 < count <= MOST or index not in range(count):
        return None
    return Part(cut.source, cut.dim, int(index), count, in_turn, made_by=cut.made_by)
