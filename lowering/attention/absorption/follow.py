"""From a captured tensor up its producers, to positions and tensors that hold less.

Every dimension of a tensor on the way is a product of axes of the scores, or is read at an index
that a step computes. A producer is followed where all its inputs together have fewer elements than
its result, and where its result is nothing but its inputs: no writes, no random numbers, no
gradient that stops there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from sympy.core.relational import Relational
from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, leaves, resolve
from fuser.graph.fold import Folder
from fuser.graph.index_rules import is_one, size_expr
from fuser.graph.ops import Kind, Op, data_inputs, is_tensor, value
from fuser.graph.positional import FALSE, TRUE, Truth, Whole, at_least_zero
from fuser.graph.program import POSITIONS, gather
from fuser.graph.pull import pull_view
from fuser.pattern import Call, Operand
from fuser.swallowed import swallow
from fuser.torch_private import to_expr

from ..conditions import ProgramReader
from .gathers import through
from .guards import require_readable, require_transparent
from .places import KEY, QUERY, Index, Place, Places, PositionReader, aligned
from .scratch import Scratch
from .steps import Steps
from .work import LARGEST, READING, work

MAX_FOLLOWED = 128
MAX_COMPARISONS = 8
MAX_OFFSET = 2**31 - 1


class Follower:
    """Turns captured tensors of one call into steps of a program.

    Attributes:
        reader: what the steps so far compute.
        opened: by captured input, the step from no more bytes that could stand for it.
    """

    def __init__(self, call: Call, folder: Folder) -> None:
        self.view = folder.view
        self.scratch, self.places = Scratch(), Places(call, folder)
        self.steps = Steps(self.scratch, self.places, self.view.size_sources)
        self.positions = PositionReader(folder, self.places.sizes)
        self.device = value(call.operands["q0"].node).device
        self.opened: dict[Node, Node] = {}
        self.reader = ProgramReader(self.places.counts, self.places.sizes, self.opened)
        self._known: dict[tuple[Node, Index], Node | None] = {}
        self._followed = 0

    def operand(self, operand: Operand) -> Node:
        """The step for a captured operand: at worst the operand itself."""
        if not is_tensor(operand.node):
            return self.scratch.captured(operand)
        dims = resolve(operand.dims)
        if not operand.target and value(operand.node).ndim:
            return self.scratch.captured(operand)
        try:
            found = self.visit(operand.node, dims)
            if self.cost(found) < self.places.elements(dims) and self._is_cheap(found, dims):
                dtype = found.meta["dtype"] if operand.dtype is None else operand.dtype
                return self.scratch.cast(found, dtype)
        except Unproven:
            pass
        return self.scratch.captured(operand)

    def _is_cheap(self, step: Node, dims: Dims) -> bool:
        """Whether computing a value for each score costs no more than to read it."""
        bias = step.meta["dtype"].is_floating_point
        if not bias or not {QUERY, KEY} <= self.places.varies(dims):
            return True
        size = self.places.elements(dims) * step.meta["dtype"].itemsize
        return size > LARGEST or work(step, self._axes) <= READING

    def _axes(self, source: Node) -> frozenset[int]:
        """The canonical dimensions that an input of a program varies along."""
        if source in self.scratch.operands and source not in self.scratch.tables:
            return self.places.varies(self.scratch.operands[source].dims)
        name = str(source.target)
        return frozenset((POSITIONS.index(name),) if name in POSITIONS else ())

    def visit(self, node: Node, index: Index, reader: Node | None = None) -> Node:
        """The step for the element of a tensor at an index.

        Args:
            node: the tensor.
            index: where.
            reader: who reads it; without one it is read after the end of the graph.

        Raises:
            Unproven: neither can its producer be followed nor the tensor be read there.
        """
        if self.positions.view.is_written(node, reader):
            raise Unproven("a tensor that is written to")
        key = (node, index)
        if key not in self._known:
            self._known[key] = self._best(node, index, reader)
        found = self._known[key]
        if found is None:
            raise Unproven(f"`{node.name}` cannot be read in a program")
        return found

    def cost(self, step: Node) -> int:
        """How many elements the captured tensors behind a step have."""
        return sum(self._elements(source) for source in self.scratch.reads[step])

    def step_of(self, place: Place) -> Node | int:
        """The index along a dimension."""
        if not isinstance(place, tuple):
            return place
        return self.steps.integer(self.places.of_dim(place))

    def expression(self, place: Place) -> sympy.Expr | None:
        """The same as an expression, where it is known as one."""
        if isinstance(place, tuple):
            return self.places.of_dim(place)
        if isinstance(place, int):
            return sympy.Integer(place)
        found = self.reader.value(place)
        return found.expr if isinstance(found, Whole) else None

    def shifted(self, place: Place, start: sympy.Expr) -> Place:
        """The place, moved by the start of a slice."""
        if start == 0:
            return place
        known = self.expression(place)
        if known is None:
            raise Unproven("a slice that is read at an index from data")
        return self.steps.integer(sympy.expand(known + start))

    def _furthest(self, table: torch.Tensor) -> int:
        """The offset of its last element."""
        along = zip(table.shape, table.stride(), strict=True)
        offsets = ((to_expr(n) - 1) * to_expr(stride) for n, stride in along)
        return self.places.number(sympy.sympify(sum(offsets)))

    def _elements(self, source: Node) -> int:
        if source in self.scratch.tables:
            table = value(self.scratch.tables[source])
            return self.places.number(sympy.prod([sympy.sympify(to_expr(n)) for n in table.shape]))
        return self.places.elements(self.scratch.operands[source].dims)

    def _bytes(self, step: Node) -> int:
        reads = self.scratch.reads[step]
        return sum(self._elements(n) * n.meta["example"].element_size() for n in reads)

    def _best(self, node: Node, index: Index, reader: Node | None) -> Node | None:
        found = self._positional(node, index, reader) or self._try(self._through, node, index)
        if found is not None and not self.scratch.reads[found]:
            return found
        kept = self._try(self._captured, node, index)
        if found is None or kept is None:
            return found or kept
        gain = self.cost(kept) - self.cost(found)
        if gain > 0 or (gain == 0 and kept.target is gather):
            return found
        if gain == 0 and self._bytes(found) <= self._bytes(kept):
            self.opened[kept] = found
        return kept

    def _try(self, how: Any, node: Node, index: Index) -> Node | None:
        try:
            found = how(node, index)
        except Exception as error:  # what cannot be followed stays as it is
            swallow(error)
            return None
        return found if found.meta["dtype"] is value(node).dtype else None

    def _positional(self, node: Node, index: Index, reader: Node | None) -> Node | None:
        """What is a function of positions and sizes alone."""

        def read(node: Node, index: Index) -> Node:
            at = [self.expression(place) for place in index]
            if any(e is None for e in at):
                raise Unproven("an index from data")
            found = self.positions.at(node, tuple(e for e in at if e is not None), reader)
            example = value(node)
            step = self.steps.value(found, example.dtype, scalar=example.ndim == 0)
            self.reader.tell(step, found)
            return step

        return self._try(read, node, index)

    def _captured(self, node: Node, index: Index) -> Node:
        """The tensor itself."""
        require_readable(self, node)
        dims = tuple(place for place in index if isinstance(place, tuple))
        if len(dims) < len(index) or not self.places.is_whole(dims):
            return self._gathered(node, index)
        target = self.places.target if value(node).ndim else ()
        fixed = tuple(self.places.fixed.items())
        order = self.view.order[node]
        return self.scratch.captured(Operand(node, dims, target, read_at=order, fixed=fixed))

    def _gathered(self, node: Node, index: Index) -> Node:
        """The tensor as a table: at positions, or at what a vector over queries or keys says."""
        if torch.is_grad_enabled() and value(node).requires_grad:
            raise Unproven("a table that is trained")
        if self._furthest(value(node)) > MAX_OFFSET:
            raise Unproven("a table with offsets of more than 32 bits")
        at = [self.step_of(place) for place in index]
        steps = [step for step in at if isinstance(step, Node)]
        reads = frozenset[Node]().union(*(self.scratch.reads[step] for step in steps))
        operands = [self.scratch.operands[n] for n in reads - set(self.scratch.tables)]
        if any({QUERY, KEY} <= self.places.varies(o.dims) for o in operands):
            raise Unproven("an index for each score")
        return self.scratch.call(gather, self.scratch.table(node), *at)

    def _through(self, node: Node, index: Index) -> Node:
        """From the producer's inputs."""
        require_transparent(self, node)
        self._require_large(index)
        self._followed += 1
        if self._followed > MAX_FOLLOWED:
            raise Unproven("too many producers")
        op = self.view.op(node)
        if op.kind is Kind.POINTWISE:
            return self._pointwise(op, node, index)
        if op.kind is Kind.VIEW:
            return self.visit(*self._view(op, node, index), node)
        return through(self, op, node, index)

    def _require_large(self, index: Index) -> None:
        dims = [place for place in index if isinstance(place, tuple)]
        if len(dims) == len(index) and not self.places.varies(tuple(dims)) & {QUERY, KEY}:
            raise Unproven("small as it is")

    def _pointwise(self, op: Op, node: Node, index: Index) -> Node:
        shape = value(node).shape
        mapped: dict[Node, Any] = {}
        for source in data_inputs(op, node):
            mapped[source] = self.visit(source, aligned(index, shape, value(source).shape), node)
        for source in node.all_input_nodes:
            if not is_tensor(source):
                mapped[source] = self._number(source)
        made = self.scratch.append(lambda: self.scratch.pointwise(op, node, mapped))
        return self._simplified(made) if made.meta["dtype"] is torch.bool else made

    def _simplified(self, step: Node) -> Node:
        """A condition without what cancels, or holds everywhere."""
        found = self.reader.value(step)
        opaque: dict[Any, Node] = dict(self.reader.opaque)
        if not isinstance(found, Truth) or opaque.get(found.condition) is step:
            return step
        if len(found.condition.atoms(Relational)) > MAX_COMPARISONS:
            return step
        if found.condition in (TRUE, FALSE):
            return self.scratch.constant(found.condition == TRUE, torch.bool, scalar=False)
        return self.steps.condition(found.condition, opaque)

    def _number(self, node: Node) -> Node | int:
        if isinstance(value(node), torch.SymInt):
            try:
                return self.steps.integer(size_expr(node))
            except Unproven:
                pass
        return self.scratch.captured(Operand(node, (), ()))

    def _view(self, op: Op, node: Node, index: Index) -> tuple[Node, Index]:
        """The input of a view, and where it is read; no axis of the scores is cut."""
        dims = [place for place in index if isinstance(place, tuple)]
        if len(dims) == len(index):
            copies = {axis: Axis(axis.size) for axis in leaves(dims)}
            source, pulled = pull_view(op, node, _renamed(dims, copies))
            back = {copy: axis for axis, copy in copies.items()}
            return source, _renamed(resolve(pulled), back)
        shape = value(node).shape
        own: Dims = tuple(() if is_one(n) else (Axis(to_expr(n)),) for n in shape)
        at = {dim[0]: place for dim, place in zip(own, index, strict=True) if dim}
        source, pulled = pull_view(op, node, own)
        return source, tuple(_single(dim, at) for dim in resolve(pulled))

    def index_step(
        self, node: Node, index: Index, size: Any, reader: Node, *, wraps: bool = True
    ) -> Node:
        """An index tensor at an index, counted from the start of a dimension of this size.

        It is within the dimension whatever the tensor holds: a kernel raises no error where eager
        does, but reads nothing beyond the table.

        Args:
            node: the index tensor.
            index: where it is read.
            size: of the dimension.
            reader: who reads it.
            wraps: negative ones count from the end.
        """
        if value(node).dtype not in (torch.int32, torch.int64) or size == 0:
            raise Unproven("an index that is no position")
        found, count = self.visit(node, index, reader), to_expr(size)
        call, number = self.scratch.call, self.steps.integer
        negative = not self._proves(found, lambda i: i)
        beyond = not self._proves(found, lambda i: count - 1 - i)
        before = negative and not (wraps and self._proves(found, lambda i: i + count))
        if (before or beyond) and isinstance(self.reader.value(found), Whole):
            raise Unproven("an index of positions that may lie outside of the table")
        if negative and wraps:
            behind = call(torch.add, found, number(count))
            found = call(torch.where, call(torch.lt, found, 0), behind, found)
        if before:
            found = call(torch.where, call(torch.lt, found, 0), 0, found)
        if beyond:
            last = call(torch.ge, found, number(count))
            found = call(torch.where, last, number(count - 1), found)
        return found

    def _proves(self, step: Node, excess: Callable[[sympy.Expr], Any]) -> bool:
        """Whether a step is a known integer of which some expression is nowhere negative."""
        known = self.reader.value(step)
        return isinstance(known, Whole) and at_least_zero(excess(known.expr), self.places.sizes)


def _renamed(dims: Any, names: dict[Axis, Axis]) -> Dims:
    if any(axis not in names for axis in leaves(dims)):
        raise Unproven("a view that cuts an axis of the scores")
    return tuple(tuple(names[axis] for axis in leaves((dim,))) for dim in dims)


def _single(dim: Dim, at: dict[Axis, Place]) -> Place:
    places = [at.get(axis) for axis in dim]
    if len(places) == 1 and places[0] is not None:
        return places[0]
    joined: list[Axis] = []
    for place in places:
        if not isinstance(place, tuple):
            raise Unproven("a view that joins computed indices")
        joined.extend(place)
    return tuple(joined)
