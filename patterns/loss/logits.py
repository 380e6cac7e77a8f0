"""From logits up to the product of rows with the matrix of all classes.

    x -> linear -> pointwise program -> rows are rearranged, or cut off -> logits

Every step proves which axes it is about: the classes are exactly what the product gives a row, and
nothing in between mixes rows, or classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, broadcast, fresh, leaves, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, data_inputs, is_tensor, value
from fuser.graph.program import Program, ProgramBuilder
from fuser.graph.pull import is_contraction, pull_contraction, pull_view
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

from ..captured import Captured, Inputs
from ..declined import Declined, spelled

MAX_NODES = 64
_MIXED = "logits are combined with a tensor that differs between {}"


@dataclass(frozen=True)
class Cut:
    """Rows of which a slice is left: the axis of all of them, that of the others, and which."""

    whole: Axis
    left: Dim
    part: slice
    node: Node


@dataclass(frozen=True)
class Multiplied:
    """`node` with the axes `dims`, which is `x matrixᵀ` over `inner`."""

    node: Node
    dims: Dims
    x: Node
    x_dims: Dims
    matrix: Node
    matrix_dims: Dims
    inner: Dim


@dataclass(frozen=True)
class Product(Multiplied):
    """`x matrixᵀ + bias`, and what becomes of it.

    Attributes:
        bias: a number for each class.
        cuts: slices of rows that were taken afterwards.
        program: from a number of the product to a logit.
        captured: tensors of one element that the program reads.
        interior: the nodes from the product to the logits.
    """

    bias: Node | None
    cuts: tuple[Cut, ...]
    program: Program
    captured: tuple[Node, ...]
    interior: frozenset[Node]


class LogitsWalk:
    """One way from logits, with `classes` among their axes, up to their product."""

    def __init__(self, view: GraphView, classes: Dim) -> None:
        self.view, self.classes = view, classes
        self.interior: set[Node] = set()
        self._builder, self._captured = ProgramBuilder(), Captured()
        self._inputs = Inputs(self._builder, self._captured)
        self._cuts: list[Cut] = []
        self._seen: dict[Node, tuple[Dims, Node]] = {}
        self._found: list[Multiplied] = []
        self._bias: Node | None = None

    def run(self, logits: Node, dims: Dims) -> Product:
        """
        Raises:
            Declined, Unproven: there is no such product, or something between is not known.
        """
        result = self._visit(logits, dims)
        if len(self._found) != 1:
            raise Declined("logits are made of several products", logits)
        (of,) = self._found
        return Product(
            of.node,
            resolve(of.dims),
            of.x,
            resolve(of.x_dims),
            of.matrix,
            resolve(of.matrix_dims),
            of.inner,
            self._bias,
            tuple(self._cuts),
            self._builder.finish(result),
            tuple(node for node, _ in self._captured.operands),
            frozenset(self.interior),
        )

    def _visit(self, node: Node, dims: Dims) -> Node:
        """The program's node for a value."""
        dims = resolve(dims)
        if node in self._seen:
            before, known = self._seen[node]
            if resolve(before) != dims:
                raise Declined("logits are combined with a rearranged copy of themselves", node)
            return known
        if len(self._seen) > MAX_NODES:
            raise Declined("too many operators stand between the product and the loss", node)
        result = self._read(self.view.op(node), node, dims)
        self.interior.add(node)
        self._seen[node] = (dims, result)
        return result

    def _read(self, op: Op, node: Node, dims: Dims) -> Node:
        product = self._product(op, node, dims)
        if product is not None:
            return product
        if op.kind is Kind.VIEW:
            return self._visit(*pull_view(op, node, dims))
        if op.kind is Kind.POINTWISE:
            return self._pointwise(op, node, dims)
        if op.kind is Kind.DROPOUT and not draws(node, op):
            return self._visit(op.args["input"], dims)
        if op.kind is Kind.SLICE:
            return self._visit(*self._cut(op, node, dims))
        raise Declined(
            f"no product with a matrix was found behind the logits: {self._told(op, node)}", node
        )

    def _told(self, op: Op, node: Node) -> str:
        if node.op == "placeholder":
            return "they are an input of this graph"
        if op.kind is Kind.DROPOUT:
            return "dropout stands between"
        return f"{spelled(node)} comes first"

    def _pointwise(self, op: Op, node: Node, dims: Dims) -> Node:
        sources = {n: broadcast(dims, value(n).shape) for n in data_inputs(op, node)}
        through = [n for n, axes in sources.items() if self._is_path(n, axes)]
        if any(value(n).device != value(node).device for n in through):
            raise Declined("logits move to another device", node)
        if not through:
            raise Declined(f"{spelled(node)} spreads numbers over the classes", node)
        added = self._added(op, node, sources, through)
        if added is not None:
            return added
        mapped: dict[Node, Node] = {}
        for source, axes in sources.items():
            mapped[source] = (
                self._visit(source, axes) if source in through else self._number(source, axes)
            )
        if any(n not in mapped and not is_tensor(n) for n in self._operands(op)):
            raise Declined("a number that is known only when it runs changes the logits", node)
        return self._builder.pointwise(op, node, mapped)

    def _operands(self, op: Op) -> list[Node]:
        return [a for a in op.args.values() if isinstance(a, Node)]

    def _is_path(self, node: Node, axes: Dims) -> bool:
        """Whether a tensor has classes for rows: then it is logits, or must be."""
        return value(node).ndim > 1 and bool(set(leaves(axes)) & set(leaves((self.classes,))))

    def _number(self, node: Node, axes: Dims) -> Node:
        """A captured tensor of one element."""
        if leaves(axes):
            classes = set(leaves(axes)) & set(leaves((self.classes,)))
            raise Declined(_MIXED.format("classes" if classes else "rows"), node)
        return self._inputs(node, axes)

    def _added(
        self, op: Op, node: Node, sources: dict[Node, Dims], through: Sequence[Node]
    ) -> Node | None:
        """`product + bias`, one number a class, which the operator adds by itself."""
        if (
            op.name != "add"
            or len(sources) != 2
            or len(through) != 1
            or op.args.get("alpha", 1) != 1
        ):
            return None
        other = next(n for n in sources if n not in through)
        if leaves(sources[other]) != leaves((self.classes,)) or value(other).ndim != 1:
            return None
        result = self._visit(through[0], sources[through[0]])
        plain = result.op == "placeholder" and str(result.target) == "z" and self._bias is None
        same = value(other).dtype == value(node).dtype == value(self._found[0].node).dtype
        if not plain or not same:
            raise Declined(_MIXED.format("classes"), node)
        self._bias = other
        return result

    def _cut(self, op: Op, node: Node, dims: Dims) -> tuple[Node, Dims]:
        """Rows of which a slice is left; they are cut off before the product then."""
        source = op.args["input"]
        shape = value(source).shape
        parts = _slices(op, len(shape))
        if parts is None:
            raise Declined("rows of logits are picked other than by slices", node)
        pulled: list[Dim] = []
        for part, dim, size in zip(parts, dims, shape, strict=True):
            if part == slice(None) or part == slice(0, None):
                pulled.append(dim)
                continue
            if set(leaves((dim,))) & set(leaves((self.classes,))):
                raise Declined("classes are cut off from the logits", node)
            whole = Axis(to_expr(size), "whole")
            self._cuts.append(Cut(whole, dim, part, node))
            pulled.append((whole,))
        return source, tuple(pulled)

    def _product(self, op: Op, node: Node, dims: Dims) -> Node | None:
        sides: tuple[tuple[Node, Dims], tuple[Node, Dims]]
        bias: Node | None = None
        if op.name == "linear" and is_tensor(op.args.get("weight")):
            matrix = op.args["weight"]
            inner = fresh((value(matrix).shape[-1],), "inner")[0]
            sides = (op.args["input"], (*dims[:-1], inner)), (matrix, (dims[-1], inner))
            bias = op.args.get("bias")
        elif op.name == "addmm" and all(is_tensor(op.args.get(n)) for n in ("mat1", "mat2")):
            a, b, bias = op.args["mat1"], op.args["mat2"], op.args["input"]
            if op.args.get("beta", 1) != 1 or op.args.get("alpha", 1) != 1:
                raise Declined("a product is scaled while a bias is added", node)
            inner = fresh((value(b).shape[0],), "inner")[0]
            sides = (a, (dims[0], inner)), (b, (inner, dims[1]))
        elif is_contraction(op) and op.name != "baddbmm":
            found = pull_contraction(op, node, dims)
            sides, inner = ((found.a, found.a_dims), (found.b, found.b_dims)), found.inner
        else:
            return None
        own = leaves(dims[-1:]) == leaves((self.classes,))
        if bias is not None and (value(bias).ndim != 1 or not own):
            raise Declined(_MIXED.format("rows"), node)
        self._bias = bias
        return self._told_apart(node, dims, sides, inner)

    def _told_apart(
        self, node: Node, dims: Dims, sides: Sequence[tuple[Node, Dims]], inner: Dim
    ) -> Node:
        """The matrix has the classes and nothing of rows."""
        classes, own = set(leaves((self.classes,))), [set(leaves(d)) for _, d in sides]
        known = set(leaves((inner,)))
        matrices = [axes - known == classes for axes in own]
        if sum(matrices) != 1 or not known or value(node).dtype.is_complex:
            raise Declined(
                "the loss runs over another axis than the one that the matrix gives", node
            )
        at = matrices.index(True)
        if own[1 - at] & classes:
            raise Declined("the rows of the product have classes already", node)
        self._found.append(Multiplied(node, dims, *sides[1 - at], *sides[at], inner))
        return self._builder.input("z")


def _slices(op: Op, rank: int) -> list[slice] | None:
    """A slice for every dimension; None where a part of the index is none of constants."""
    found = [slice(None)] * rank
    if op.name == "narrow":
        dim, start, length = (op.args.get(n) for n in ("dim", "start", "length"))
        if not (isinstance(dim, int) and isinstance(start, int) and isinstance(length, int)):
            return None
        found[dim] = slice(start, start + length)
        return found if start >= 0 else None
    index: Any = op.args.get("index")
    given: list[Any] = list(index) if isinstance(index, tuple) else [index]
    if given.count(Ellipsis) == 1:
        at = given.index(Ellipsis)
        given[at : at + 1] = [slice(None)] * (rank - len(given) + 1)
    if len(given) > rank or not all(map(_is_constant, given)):
        return None
    found[: len(given)] = given
    return found


def _is_constant(part: Any) -> bool:
    if not isinstance(part, slice):
        return False
    ends: tuple[Any, ...] = (part.start, part.stop, part.step)
    return all(n is None or isinstance(n, int) for n in ends)
