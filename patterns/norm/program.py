"""The programs around a normalisation, built from their results up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, broadcast, leaves, resolve
from fuser.graph.ops import Kind, value
from fuser.graph.program import Program, ProgramBuilder
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.graph.view import GraphView
from fuser.specs.norm import PAIR

from ..captured import Captured
from ..parts import Part
from . import pairs
from .core import Core
from .peaks import is_peak
from .sections import Row, known, range_of, row_of, rows_around

_COMPLEX = "complex numbers that something else than a product reads"


class Reader:
    """Builds one program: what one element of a result is.

    Attributes:
        builder: of the program.
        core_dims: axes of what was normalised, once that was reached.
        peaks: nodes that are the largest value of each row, with their axes.
    """

    def __init__(
        self, view: GraphView, inside: Collection[Node], captured: Captured, pair: pairs.Pair,
        member: int | None = None, section: int | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            view: of the graph.
            inside: nodes that are a part of the program.
            captured: tensors that it reads from outside.
            pair: what its pairs are.
            member: whose program it is; None where a program is the same for both.
            section: of a row that has several; None for one of the first part that was changed.
        """
        self.view, self.inside, self.captured, self.pair = view, inside, captured, pair
        self.member, self.section = member, section
        self.builder = ProgramBuilder()
        self.column: int | None = None
        self.core_dims: Dims | None = None
        self.peaks: dict[Node, Dims] = {}
        self._inputs: dict[str, Node] = {}
        self._seen: dict[tuple[Node, int | None, int | None], tuple[Dims, Any]] = {}

    def program(self, node: Node, dims: Dims, core: Core | None) -> Program:
        """What computes a value with these axes."""
        return self.builder.finish(self.visit(node, dims, core, self.member))

    def visit(self, node: Node, dims: Dims, core: Core | None, member: int | None) -> Node:
        """The program's node for a value with these axes; of a pair, for one member.

        Raises:
            Unproven: it is read in two arrangements.
        """
        return self._once(node, dims, core, member, self._made)

    def dims(self, node: Node) -> Dims:
        """The axes that a value was visited with."""
        return resolve(next(dims for (n, *_), (dims, _) in self._seen.items() if n is node))

    def _once(
        self, node: Node, dims: Dims, core: Core | None, member: int | None, make: Any
    ) -> Any:
        dims = resolve(dims)
        spread = self.pair.column in leaves(dims)
        if spread and not self.pair.has(dims) and (node in self.inside or self._is(core, node)):
            dims, member, spread = resolve(self.pair.of_column(dims)), self.column, False
        told = self.pair.has(dims) or self.pair.section in leaves(dims)
        key = node, member if told else None, self.column if spread else None
        if key in self._seen:
            known, made = self._seen[key]
            if resolve(known) != dims:
                raise Unproven("a tensor is combined with a rearranged copy of itself")
            return made
        made = make(node, dims, core, member)
        self._seen[key] = (dims, made)
        return made

    def _made(self, node: Node, dims: Dims, core: Core | None, member: int | None) -> Node:
        if core is not None and self._is(core, node):
            return self._core(core, dims, member)
        if node not in self.inside:
            return self._input(node, dims, member)
        op = self.view.op(node)
        if is_peak(self.view, node):
            self.peaks[node] = dims
            return self.builder.graph.placeholder("p")
        if op.kind is Kind.DROPOUT:
            return self.visit(op.args["input"], dims, core, member)
        if op.kind is Kind.VIEW:
            return self.visit(*pull_view(op, node, dims), core, member)
        view, row = self.view, row_of(self.view, node)
        around = [r for whole, r in rows_around(view, node).items() if whole in self.inside]
        if row is not None:
            return self._row(row, node, dims, core, member)
        if around:
            return self._section(around[0], node, dims, core, member)
        part = pairs.member(view, node)
        whole = pairs.both(view, node) or pairs.written(view, node)
        if part is not None:
            axes = self.pair.apart(part, dims)
            if self._is_written(pairs.written_to(view, node)):  # the source as it was before
                return self._pointwise(part.source, axes, core, part.index)
            return self.visit(part.source, axes, core, part.index)
        if whole is not None and (not whole.writes or self._is_written(whole)):
            each, own = self.pair.together(whole, dims), whole.parts[known(member)]
            made = self.visit(own, each, core, member)
            return (
                made
                if value(own).dtype is value(node).dtype
                else self._cast(made, value(node).dtype)
            )
        if op.name == "view_as_real":
            self.pair.require(dims[-1])
            return self._complex(op.args["input"], dims[:-1], core)[known(member)]
        if value(node).is_complex():
            raise Unproven(_COMPLEX)
        added = pairs.added(self.view, node)
        if added is not None:
            return self._sum(op.args["input"], self.pair.spread(added, dims), core, member)
        return self._pointwise(node, dims, core, member)

    def _pointwise(self, node: Node, dims: Dims, core: Core | None, member: int | None) -> Node:
        op = self.view.op(node)
        if op.kind is not Kind.POINTWISE:
            raise Unproven("elements of a row that are read apart from the rest of it")
        pulled = self._pulled(node, dims, core)
        mapped = {n: self.visit(n, axes, core, member) for n, axes in pulled.items()}
        return self.builder.pointwise(op, node, mapped)

    def _pulled(self, node: Node, dims: Dims, core: Core | None) -> dict[Node, Dims]:
        """Axes of what a pointwise operator reads, which tell whether it has both members."""
        pulled = pull_pointwise(self.view.op(node), node, dims)
        known = {*self.inside, *([] if core is None else [core.node])}
        if pairs.widens(self.view, node, known):
            read = next(axes for n, axes in pulled.items() if n in known)
            self.pair.require(tuple(a for a in leaves(dims) if a not in leaves(read)))
        return pulled

    def _row(self, row: Row, node: Node, dims: Dims, core: Core | None, member: int | None) -> Node:
        """A section of a row that was put together: of what was made of a part, or what it was."""
        each, part = self.pair.cut(row, dims), self._part
        own = row.source if part is None else row.parts[part]
        made = self.visit(own, dims if part is None else each, core, member)
        same = value(own).dtype is value(node).dtype
        return made if same else self._cast(made, value(node).dtype)

    def _section(
        self, row: Row, node: Node, dims: Dims, core: Core | None, member: int | None
    ) -> Node:
        part = self._part
        if part is None or range_of(self.view, node) != row.before(part):
            raise Unproven("one section of a row is made of another")
        return self.visit(row.source, self.pair.whole(row, dims), core, member)

    @property
    def _part(self) -> int | None:
        """The part of rows that the section is of, if that was changed."""
        sections = self.pair.sections
        return 0 if sections is None else sections.part_of(self.section)

    def _is_written(self, whole: pairs.Both | None) -> bool:
        """Whether there is all that was written into a tensor.

        Raises:
            Unproven: there is a part of it.
        """
        there = [write in self.inside for write in (whole.writes if whole else ())]
        if any(there) and not all(there):
            raise Unproven("one member of each pair alone is written to")
        return any(there)

    def _sum(self, node: Node, dims: Dims, core: Core | None, member: int | None) -> Node:
        """Of two elements."""
        self._pulled(node, dims, core)
        terms, outer = list[Node](), self.column
        for self.column in (0, 1):
            terms.append(self.visit(node, dims, core, member))
        self.column = outer
        return self.builder.call(torch.add, *terms)

    @staticmethod
    def _is(core: Core | None, node: Node) -> bool:
        return core is not None and node is core.node

    def _complex(self, node: Node, dims: Dims, core: Core | None) -> tuple[Node, Node]:
        """The real and the imaginary part of a value."""
        return self._once(node, dims, core, None, self._made_complex)

    def _made_complex(
        self, node: Node, dims: Dims, core: Core | None, _: int | None
    ) -> tuple[Node, Node]:
        op = self.view.op(node)
        own = self.pair.apart(Part(node, len(dims), 0, 2, kept=False), dims)
        if node not in self.inside:
            if value(node).dtype is not torch.complex64 or value(node).is_conj():
                raise Unproven(_COMPLEX)
            return self._input(node, own, 0), self._input(node, own, 1)
        if op.name == "view_as_complex":
            x = op.args["input"]
            return self.visit(x, own, core, 0), self.visit(x, own, core, 1)
        if op.kind is Kind.VIEW:
            return self._complex(*pull_view(op, node, dims), core)
        if not pairs.is_product(op, node):
            raise Unproven(_COMPLEX)
        pulled, call = pull_pointwise(op, node, dims), self.builder.call
        (a, b), (c, d) = (
            self._complex(n, pulled[n], core) for n in (op.args["input"], op.args["other"])
        )
        real = call(torch.sub, call(torch.mul, a, c), call(torch.mul, b, d))
        return real, call(torch.add, call(torch.mul, a, d), call(torch.mul, b, c))

    def _input(self, node: Node, dims: Dims, member: int | None) -> Node:
        own, column, sections = self._member(dims, member), self.pair.column, self.pair.sections
        fixed = ((column, known(self.column)),) if column in leaves(dims) else ()
        if not own and sections is not None and self.section is not None:
            fixed += sections.fixed(dims, self.section, member)
        name = self.captured.add(node, dims, fixed) + own
        if name not in self._inputs:
            self._inputs[name] = self.builder.input(name)
        return self._inputs[name]

    def _member(self, dims: Dims, member: int | None) -> str:
        sections, told = self.pair.sections, self.pair.has(dims)
        if sections is None or self.section is None:
            return PAIR[member] if told and member is not None else ""
        if sections.axis not in leaves(dims):  # what has both members of a part has them for all
            return PAIR[known(member)] if told and sections.row.even else ""
        if not (sections.apart or told):
            raise Unproven("sections of a row that have no pairs")
        return sections.name(self.section, member)

    def _core(self, core: Core, dims: Dims, member: int | None) -> Node:
        if self.core_dims is not None and resolve(self.core_dims) != dims:
            raise Unproven("what was normalised is read in two arrangements")
        self.core_dims = dims
        result = self.builder.input("n" + self._member(dims, member))
        for factor in core.factors:
            if isinstance(factor, Node):
                factor = self._input(factor, broadcast(dims, value(factor).shape), member)
            result = self.builder.call(torch.mul, result, factor)
        for parameter, combine in ((core.weight, torch.mul), (core.bias, torch.add)):
            if parameter is not None:
                axes = broadcast(core.along(dims, parameter), value(parameter).shape)
                wide = self._input(parameter, axes, member)
                if value(parameter).dtype is not torch.float32:
                    wide = self._cast(wide, torch.float32)
                result = self.builder.call(combine, result, wide)
        dtype = value(core.node).dtype
        return result if dtype is core.dtype else self._cast(result, dtype)

    def _cast(self, node: Node, dtype: torch.dtype) -> Node:
        return self.builder.graph.call_method("to", (node,), {"dtype": dtype})
