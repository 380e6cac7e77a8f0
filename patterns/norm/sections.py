"""Rows of which a part alone is rotated, and the rest is put back as it was.

    cat([turned(x[..., :r]), x[..., r:]], -1)

Such a row has equal sections, each as long as the part that is turned, which is one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.index import full_index
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView
from fuser.specs.norm import MEMBERS

from ..captured import loses_nothing
from ..parts import LISTS

MOST = len(MEMBERS) // 2
"""Sections of a row: kernels have a tensor for each member of each."""
_LIMIT = 64


@dataclass(frozen=True)
class Range:
    """Some elements of a tensor, along one dimension."""

    source: Node
    dim: int
    start: int
    length: int


@dataclass(frozen=True)
class Row:
    """A row that was put together.

    Attributes:
        source: what its parts are made of.
        dim: of both.
        count: of sections.
        turned: which of them is another one than it was.
        part: what that is.
    """

    source: Node
    dim: int
    count: int
    turned: int
    part: Node

    def has(self, part: Range) -> bool:
        """Whether a part is the section that is turned."""
        unit = value(self.part).shape[self.dim]
        own = Range(self.source, self.dim, self.turned * unit, unit)
        return part == own


def row_of(view: GraphView, node: Node) -> Row | None:
    """What a node puts together: one section that was changed, and the rest that was not."""
    op = view.op(node)
    parts, dim = op.args.get("tensors"), op.args.get("dim", 0)
    if op.name != "cat" or not isinstance(dim, int) or not isinstance(parts, (list, tuple)):
        return None
    if not is_tensor(node) or not 2 <= len(parts) <= MOST or not all(map(is_tensor, parts)):
        return None
    if any(value(part).ndim != value(node).ndim for part in parts):
        return None  # an empty one of one dimension, which is passed over
    dim %= value(node).ndim
    sizes = [value(part).shape[dim] for part in parts]
    if not all(isinstance(size, int) and size for size in sizes):
        return None
    found = [range_of(view, _copied(view, part)) for part in parts]
    changed = [i for i, part in enumerate(found) if part is None]
    sources = {part.source for part in found if part is not None}
    if len(changed) != 1 or len(sources) != 1:
        return None
    ((own,), (source,)), starts = (changed, sources), [sum(sizes[:i]) for i in range(len(sizes))]
    unit, total = sizes[own], sum(sizes)
    kept = [Range(source, dim, starts[i], size) for i, size in enumerate(sizes)]
    if value(source).shape[dim] != total or value(source).ndim != value(node).ndim:
        return None
    if any(found[i] not in (None, part) for i, part in enumerate(kept)):
        return None
    if total % unit or starts[own] % unit or total // unit > MOST:
        return None
    row = Row(source, dim, total // unit, starts[own] // unit, parts[own])
    return row if _is_made_of(view, parts[own], kept[own]) else None


def row_around(view: GraphView, node: Node) -> tuple[Node, Row] | None:
    """The row of which a node has some elements as they were, and where it is put together."""
    own = range_of(view, node)
    if own is None:
        return None
    for cut in own.source.users:
        for part in cut.users if view.op(cut).name in LISTS else (cut,):
            for whole in _puts_back(view, part):
                row = row_of(view, whole)
                if row is not None and (row.source, row.dim) == (own.source, own.dim):
                    return whole, row
    return None


def range_of(view: GraphView, node: Node) -> Range | None:
    """Which elements of a tensor a node has, if these follow each other."""
    op = view.op(node)
    source = op.args.get("input")
    if not is_tensor(node) or op.inplace or not isinstance(source, Node):
        return None
    if op.name == "getitem" and not is_tensor(source):
        return _of_list(view, node, source, op.args.get("index"))
    if not is_tensor(source):
        return None
    if op.name == "narrow":
        return _known(source, op.args["dim"], op.args["start"], op.args["length"])
    return _sliced(source, op.args["index"], node) if op.kind is Kind.SLICE else None


def _of_list(view: GraphView, node: Node, cut: Node, index: Any) -> Range | None:
    of = view.op(cut)
    source, dim = of.args.get("input"), of.args.get("dim", 0)
    if of.name not in ("chunk", "split") or not is_tensor(source) or not isinstance(index, int):
        return None
    if not isinstance(dim, int):
        return None
    sizes = [piece.shape[dim] for piece in value(cut)]
    return _known(source, dim, sum(sizes[: index % len(sizes)]), value(node).shape[dim])


def _sliced(source: Node, index: Any, node: Node) -> Range | None:
    try:
        parts = full_index(index, value(source).ndim)
    except Unproven:
        return None
    cut = [i for i, part in enumerate(parts) if part != slice(None)]
    if len(cut) != 1 or len(parts) != value(source).ndim or not isinstance(parts[cut[0]], slice):
        return None
    part, size = parts[cut[0]], value(source).shape[cut[0]]
    if part.step not in (None, 1) or not all(
        isinstance(n, (int, type(None))) for n in (part.start, part.stop, size)
    ):
        return None
    start, _, _ = part.indices(size)
    return _known(source, cut[0], start, value(node).shape[cut[0]])


def _known(source: Node, dim: Any, start: Any, length: Any) -> Range | None:
    if not all(isinstance(n, int) for n in (dim, start, length)):
        return None
    return Range(source, dim % value(source).ndim, start, length)


def _copied(view: GraphView, node: Node) -> Node:
    """What a node is a copy of."""
    op = view.op(node)
    while op.kind is Kind.POINTWISE and not op.inplace and loses_nothing(op, node):
        node = op.args["input"]
        op = view.op(node)
    return node


def _puts_back(view: GraphView, node: Node) -> Iterator[Node]:
    """What puts a tensor, or a copy of it, beside others."""
    for user in node.users:
        op = view.op(user)
        if op.name == "cat":
            yield user
        elif op.kind is Kind.POINTWISE and loses_nothing(op, user):
            yield from _puts_back(view, user)


def _is_made_of(view: GraphView, node: Node, own: Range) -> bool:
    """Whether of a tensor nothing but one range is in a node."""
    pending, seen, first = [node], set[Node](), view.order[own.source]
    while pending:
        node = pending.pop()
        if node in seen or view.order[node] < first or range_of(view, node) == own:
            continue
        seen.add(node)
        if node is own.source or len(seen) > _LIMIT:
            return False
        pending += node.all_input_nodes
    return True
