"""The program of a region around an activation, and what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Unproven, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.program import ProgramBuilder
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.graph.view import GraphView
from fuser.pattern import Call, Match, Operand
from fuser.specs import ActivationSpec

from ..arranged import cut
from ..captured import Captured
from ..parts import Part, complete
from .anchors import GLU, is_nonlinear
from .gates import is_gated
from .growth import above, chains

Option = tuple[tuple[Node, ...], bool]
"""A chain down from the anchor, and whether what is above joins."""


@dataclass(frozen=True)
class Found:
    """A region; `gated`: an activation of one tensor is multiplied with another."""

    match: Match
    gated: bool


def largest(view: GraphView, anchor: Node, pattern: str) -> Found:
    """The largest region around an activation that one operator can compute; lesser ones are gated
    where it is.

    Raises:
        Unproven: there is none.
    """
    down = chains(view, anchor)
    options = [(chain, up) for up in (True, False) for chain in down]
    return _first(view, anchor, pattern, options)


def _first(
    view: GraphView,
    anchor: Node,
    pattern: str,
    options: Sequence[Option],
    gated: bool | None = None,
) -> Found:
    """The first region that can be computed, with the others as lesser ones."""
    reason = Unproven("no region ends with it")
    for i, (chain, up) in enumerate(options):
        try:
            found = _found(view, anchor, pattern, chain, up)
        except Unproven as error:
            reason = error
            continue
        if gated in (None, found.gated):
            lesser = partial(_lesser, view, anchor, pattern, options[i + 1 :], found.gated)
            return replace(found, match=replace(found.match, lesser=lesser))
    raise reason


def _lesser(
    view: GraphView, anchor: Node, pattern: str, options: Sequence[Option], gated: bool
) -> Match | None:
    try:
        return _first(view, anchor, pattern, options, gated).match
    except Unproven:
        return None


def _found(view: GraphView, anchor: Node, pattern: str, chain: tuple[Node, ...], up: bool) -> Found:
    nodes = {*chain, *(above(view, chain) if up else ())}
    outside = [n for node in nodes for n in node.all_input_nodes if is_tensor(n) and n not in nodes]
    parts = complete(view, dict.fromkeys(outside))
    region = _Region(view, nodes, parts, chain[-1])
    if not region.operands.has_all_parts:
        region = _Region(view, nodes, {}, chain[-1])
    return region.found(anchor, pattern)


class _Region:
    """Pointwise operators between operands and one result."""

    def __init__(
        self, view: GraphView, nodes: set[Node], parts: Mapping[Node, Part], out: Node
    ) -> None:
        self.view, self.nodes, self.parts, self.out = view, nodes, parts, out
        self.builder = ProgramBuilder()
        self.operands = _Operands(self.builder)
        self.dims = fresh(value(out).shape, "o")
        self._seen: dict[Node, tuple[Dims, Node]] = {}
        self._nonlinear: list[Node] = []
        self._result = self._visit(out, self.dims)

    def found(self, anchor: Node, pattern: str) -> Found:
        arrangement = cut(self.dims, [dims for _, dims in self.operands.captured.operands])
        given = self.operands.arranged(arrangement)
        full = {name for name, dims in self.operands.names.items() if self._is_full(dims)}
        gated = is_gated(self._result, self._nonlinear, full)
        spec = ActivationSpec(
            tuple(self.operands.counts), self.builder.finish(self._result), value(self.out).dtype
        )
        nodes = self._with_cuts()
        differ = [j for j, operand in enumerate(given) if value(operand.node).requires_grad]
        saved = spec.read_by_gradient(differ)
        operands = {
            f"c{j}": replace(operand, read_at=self._read_at(operand.node), saved=j in saved)
            for j, operand in enumerate(given)
        }
        match = Match(
            pattern, anchor, frozenset(nodes), (self.out,), (Call(spec, operands),), arrangement,
            resolve(self.dims), facts=self._facts(spec), keeps_result=False,
        )  # fmt: skip
        return Found(match, gated)

    def _is_full(self, dims: Dims) -> bool:
        return set(leaves(self.dims)) <= set(leaves(dims))

    def _visit(self, node: Node, dims: Dims) -> Node:
        """The program's node for a value with these axes.

        Raises:
            Unproven: it is read in two arrangements.
        """
        dims = resolve(dims)
        if node in self._seen:
            known, made = self._seen[node]
            if resolve(known) != dims:
                raise Unproven("a tensor is combined with a rearranged copy of itself")
            return made
        made = self._made(node, dims)
        self._seen[node] = (dims, made)
        return made

    def _made(self, node: Node, dims: Dims) -> Node:
        if node not in self.nodes:
            part = self.parts.get(node)
            return self.operands.part(part, dims) if part else self.operands.whole(node, dims)
        op = self.view.op(node)
        if op.kind is Kind.DROPOUT:
            return self._visit(op.args["input"], dims)
        if op.kind is Kind.VIEW:
            return self._visit(*pull_view(op, node, dims))
        made = self._glu(op, node, dims) if op.name == GLU else self._pointwise(op, node, dims)
        if is_nonlinear(self.view, node):
            self._nonlinear.append(made)
        return made

    def _pointwise(self, op: Op, node: Node, dims: Dims) -> Node:
        pulled = pull_pointwise(op, node, dims)
        mapped = {source: self._visit(source, axes) for source, axes in pulled.items()}
        return self.builder.pointwise(op, node, mapped)

    def _glu(self, op: Op, node: Node, dims: Dims) -> Node:
        """One half times the sigmoid of the other, in fp32, as the library's kernel has it."""
        source, dim = op.args["input"], op.args.get("dim", -1)
        dim %= value(source).ndim
        halves = (self.operands.part(Part(source, dim, i, 2), dims) for i in range(2))
        call = self.builder.call
        x, gate = (self._cast(half, torch.float32, value(source).dtype) for half in halves)
        active = call(torch.sigmoid, gate)
        self._nonlinear.append(active)
        product = call(torch.mul, x, active)
        return self._cast(product, value(node).dtype, torch.float32)

    def _cast(self, node: Node, dtype: torch.dtype, given: torch.dtype) -> Node:
        if dtype is given:
            return node
        return self.builder.graph.call_method("to", (node,), {"dtype": dtype})

    def _with_cuts(self) -> set[Node]:
        """The region, with operators that cut tensors for it alone."""
        nodes = set(self.nodes)
        for part in self.parts.values():
            for node in part.made_by:
                if set(node.users) <= nodes:
                    nodes.add(node)
        for part in self.parts.values():  # lists of parts, once all parts are there
            nodes.update(n for n in part.made_by if set(n.users) <= nodes)
        return nodes

    def _read_at(self, node: Node) -> int:
        """When a tensor, or a part of it, is read first."""
        cuts = [n for n, part in self.parts.items() if part.source is node]
        users = [user for n in (node, *cuts) for user in n.users if user in self.nodes]
        return min(map(self.view.order.__getitem__, users), default=self.view.order[node])

    def _facts(self, spec: ActivationSpec) -> dict[str, str]:
        halves = {f"c{j}": f"{n} parts" for j, n in enumerate(spec.parts) if n > 1}
        return {"program": spec.program.formula(), **halves}


class _Operands:
    """What a program reads: tensors, and parts of them.

    Attributes:
        captured: tensors and their axes, in order.
        names: axes by what the program calls each tensor or part.
    """

    def __init__(self, builder: ProgramBuilder) -> None:
        self.captured, self.names = Captured(), dict[str, Dims]()
        self._builder = builder
        self._inputs: dict[str, Node] = {}
        self._axes: dict[object, Axis] = {}
        self._parts: dict[str, tuple[Axis, set[int]]] = {}

    def whole(self, node: Node, dims: Dims) -> Node:
        return self._input(self.captured.add(node, dims), dims)

    def part(self, part: Part, dims: Dims) -> Node:
        axis = self._axes.setdefault(part.cut, Axis(part.count, "part"))
        name = self.captured.add(part.source, part.whole(dims, axis))
        self._parts.setdefault(name, (axis, set()))[1].add(part.index)
        return self._input(f"{name}_{part.index}", dims)

    def _input(self, name: str, dims: Dims) -> Node:
        if name not in self._inputs:
            self._inputs[name] = self._builder.input(name)
            self.names[name] = dims
        return self._inputs[name]

    @property
    def has_all_parts(self) -> bool:
        """Whether parts of one tensor are read in one arrangement."""
        return all(len(read) == axis.size for axis, read in self._parts.values())

    @property
    def counts(self) -> list[int]:
        """Parts of each tensor."""
        names = [f"c{j}" for j in range(len(self.captured.operands))]
        return [len(self._parts[n][1]) if n in self._parts else 1 for n in names]

    def arranged(self, arrangement: Dims) -> list[Operand]:
        """Parts first, where there are some, then the dimensions of the region."""
        found: list[Operand] = []
        for j, (node, dims) in enumerate(self.captured.operands):
            parts = (self._parts[f"c{j}"][0],) if f"c{j}" in self._parts else ()
            found.append(Operand(node, resolve(dims), (parts, *arrangement)))
        return found
