"""Rows in runs, one for each expert, that another graph or another rank has sorted.

Runs are told by their ends, or made by a split whose sizes are the numbers of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, fresh, leaves, resolve
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Match
from fuser.torch_private import known_true

from .branches import column, in_one, same
from .expert import Expert, ExpertWalk, NoExpert
from .region import in_runs
from .rows import rows_of
from .space import Place, Space, require

ALONE = "there is one expert here, and its products are ordinary ones"


@dataclass
class Runs(Space):
    """Rows that are in the runs of their experts, or in the run of one.

    Attributes:
        ends: where runs end; None for the rows of one expert.
    """

    ends: Node | None = None

    @property
    def sorted(self) -> bool:
        return self.ends is not None

    def ends_at(self, ends: Node, experts: int) -> bool:
        return ends is self.ends

    def locate(self, node: Node, dims: Dims) -> Place:
        """The same; and what is repeated for all rows of a run is a part of its expert's."""
        found = super().locate(node, dims)
        op = self.view.op(found.node)
        repeats = op.name == "repeat_interleave" and op.args.get("dim") == 0
        if not repeats or self.ends is None or self.view.is_written(found.node):
            return found
        along = found.dims[:1] == resolve((self.tokens,))
        if not along or not self._are_counts(op.args.get("repeats")):
            return found
        source = op.args["input"]
        experts = fresh(value(source).shape[:1], "e")[0]
        source, whole = self._peel(source, (experts, *found.dims[1:]))
        return Place(source, whole, experts)

    def _is_choice(self, index: Node, dims: Dims) -> bool:
        return False  # whatever it says, rows go where their run does

    def _are_counts(self, node: Any) -> bool:
        """Whether a tensor has the lengths of runs."""
        assert self.ends is not None
        sums = _uncast(self.view, self.ends)
        if not is_tensor(node) or sums is None:
            return False
        op = self.view.op(sums)
        if op.name != "cumsum" or op.args.get("dim") not in (0, -1):
            return False
        counts = _uncast(self.view, op.args["input"])
        return counts is not None and counts is _uncast(self.view, node)


def _uncast(view: GraphView, node: Node) -> Node | None:
    """Integers before they were cast to others; None where the numbers may change on the way."""
    while value(node).dtype in (torch.int32, torch.int64) and not view.is_written(node):
        op = view.op(node)
        if op.name not in ("to", "int", "long") or not is_tensor(op.args["input"]):
            return node
        node = op.args["input"]
    return None


@dataclass(frozen=True)
class Split:
    """Rows cut into pieces.

    Attributes:
        node: the call.
        rows: what is cut.
        sizes: of the pieces, numbers that were read from a tensor.
    """

    node: Node
    rows: Node
    sizes: Sequence[Any]


def splits(view: GraphView) -> Iterator[Split]:
    """All of a graph."""
    for node in view.nodes:
        found = _split(view, node)
        if found is not None:
            yield found


def _split(view: GraphView, node: Node) -> Split | None:
    op = view.op(node)
    rows, sizes = op.args.get("input"), op.args.get("sizes")
    if op.name != "split" or op.args.get("dim", 0) != 0 or not is_tensor(rows):
        return None
    if not isinstance(sizes, (list, tuple)) or not sizes or not all(map(_is_read, sizes)):
        return None
    return Split(node, rows, sizes)


def _is_read(size: Any) -> bool:
    return isinstance(size, Node) and (size.op, size.target) == ("call_method", "item")


def in_turn(view: GraphView, anchor: Node) -> Match | None:
    """Experts one after the other, whose results the anchor puts together.

    Raises:
        Declined: they are experts on the pieces of a split, and something is not proved.
    """
    op, out_dims = view.op(anchor), fresh(value(anchor).shape, "o")
    parts = op.args["tensors"]
    if op.args.get("dim", 0) != 0 or len(out_dims) != 2 or not all(map(is_tensor, parts)):
        return None
    found = [_on_piece(view, part, out_dims[-1]) for part in parts]
    if found[0] is None:
        return None
    split, rows = found[0].split, leaves(out_dims[:1])
    require(len(parts) > 1, ALONE, anchor)
    experts, interior = list[Expert](), {split.node}
    for number, piece in enumerate(found):
        own = piece is not None and piece.split.node is split.node and piece.number == number
        require(own, "what is put together are not the runs of one split in their order", anchor)
        assert piece is not None
        x = Place(split.rows, (rows, *piece.expert.x.dims[1:]))
        experts.append(replace(piece.expert, x=x))
        interior |= {piece.node, *piece.expert.interior}
    counts = _counts(view, split.sizes)
    require(counts is not None, "runs are not as long as the numbers of one tensor", split.node)
    assert counts is not None
    one = all(e.inside.scale == experts[0].inside.scale for e in experts)
    require(one, "runs are multiplied with different numbers", anchor)
    total, given = (value(n).shape[0] for n in (anchor, split.rows))
    require(known_true(total == given), "runs are not known to be all of the rows", anchor)
    same(experts, anchor)
    space = Runs(view, value(anchor).dtype, rows, interior=interior)
    return in_runs(space, anchor, out_dims, in_one(view, experts), {"counts": counts})


@dataclass(frozen=True)
class _Piece:
    """One expert on one piece of a split."""

    split: Split
    number: int
    node: Node
    expert: Expert


def _on_piece(view: GraphView, part: Node, features: Dim) -> _Piece | None:
    """The expert that gave a part of the result, and the piece that it was given."""
    row = fresh(value(part).shape[:1], "row")[0]
    space = Runs(view, value(part).dtype, row)
    try:
        rows = rows_of(space, part, (row, features))
        expert = ExpertWalk(space).run(rows.node, rows.dims)
    except NoExpert:
        return None
    node = expert.x.node
    source = node.args[0] if node.args else None
    taken = getattr(node.target, "__name__", "") == "getitem" and isinstance(source, Node)
    split = _split(view, source) if taken and isinstance(source, Node) else None
    if split is None or expert.x.dims[:1] != (row,) or not isinstance(node.args[1], int):
        return None
    weights = rows.weights.times(expert.inside)
    require(not weights.factors, "runs are weighted one by one", part)
    number = node.args[1] % len(split.sizes)
    return _Piece(split, number, node, replace(expert, inside=weights))


def _counts(view: GraphView, sizes: Sequence[Any]) -> Node | None:
    """The tensor whose numbers, one after the other, are sizes."""
    parts = [column(view, Place(size.args[0], ())) for size in sizes]
    source = parts[0][0] if parts[0] is not None else None
    if source is None or value(source).shape != (len(sizes),) or view.is_written(source):
        return None
    own = [part is not None and part[0] is source and part[3] == i for i, part in enumerate(parts)]
    return source if all(own) else None
