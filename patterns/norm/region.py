"""What is pointwise before and after a normalisation, as two programs.

Upwards an operator joins where nobody else reads its result; downwards as far as one tensor alone
leaves the region, through sums and products with anything that is broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, broadcast, fresh, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.program import ProgramBuilder
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.graph.view import GraphView
from fuser.pattern import Call, Match, Operand
from fuser.soundness import reads_shape_alone
from fuser.specs import NormSpec

from ..captured import Captured, Inputs, loses_nothing
from ..declined import Declined
from .core import DTYPES, Core, resolved, same_shape

MAX_STEPS = 24
"""Longest program after a normalisation."""
MAX_BEFORE = 8
REARRANGED = (
    "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "t", "T", "mT", "movedim",
)  # fmt: skip
"""Views that have every element once."""
_SIDES = ((True, True), (False, True), (True, False), (False, False))
"""Whether a region has what is pointwise before, and after; where that is not sound, the next."""


def grown(
    view: GraphView, core: Core, pattern: str, sides: Sequence[tuple[bool, bool]] = _SIDES
) -> Match:
    """The region around a normalisation.

    Raises:
        Declined, Unproven: it cannot be computed by one operator.
    """
    _require_dtypes(core)
    lesser = partial(grown, view, core, pattern, sides[1:]) if sides[1:] else None
    try:
        return replace(_Region(view, core, *sides[0]).match(pattern), lesser=lesser)
    except Unproven:
        if lesser is None:
            raise
        return lesser()


@dataclass
class _Region:
    view: GraphView
    core: Core
    before: bool
    after: bool

    def match(self, pattern: str) -> Match:
        core = self.core
        after = _after(self.view, core) if self.after else [core.node]
        out = after[-1]
        kept = _kept(self.view, core, out) if self.before else None
        before: set[Node] = _before(self.view, core, kept) if self.before else set()
        kept = kept if kept in before else None
        dims = fresh(value(out).shape, "o")
        captured = Captured()
        end = _Program(self.view, set(after) - {core.node}, captured)
        result = end.visit(out, dims, core)
        assert end.core_dims is not None
        space = core.split(end.core_dims)
        start = _Program(self.view, before, captured)
        x = start.visit(core.x, end.core_dims, None)
        arrangement, inner = resolved(space).arranged([d for _, d in captured.operands])
        nodes = {*core.interior, *after, *before}
        spec = NormSpec(
            len(captured.operands), inner, start.builder.finish(x), end.builder.finish(result),
            core.centred, core.summed, core.floor, core.eps, core.dtype, value(out).dtype,
            value(kept).dtype if kept else None,
        )  # fmt: skip
        operands = {
            f"c{i}": Operand(node, resolve(axes), arrangement, read_at=self._read_at(node, nodes))
            for i, (node, axes) in enumerate(captured.operands)
        }
        return Match(
            pattern,
            core.node,
            frozenset(nodes),
            (out, kept) if kept else (out,),
            (Call(spec, operands),),
            arrangement,
            resolve(dims),
            facts=_facts(spec),
            keeps_result=False,  # no lowering of ours differentiates by what it gave
            native=core.native,
            parts=((arrangement, resolve(dims)), (arrangement, start.dims(kept))) if kept else (),
        )

    def _read_at(self, node: Node, nodes: set[Node]) -> int:
        order = self.view.order
        return min((order[u] for u in node.users if u in nodes), default=order[node])


class _Program:
    """Builds one program, from its result up."""

    def __init__(self, view: GraphView, inside: set[Node], captured: Captured) -> None:
        self.view, self.inside = view, inside
        self.builder = ProgramBuilder()
        self.inputs = Inputs(self.builder, captured)
        self.core_dims: Dims | None = None
        self._seen: dict[Node, tuple[Dims, Node]] = {}
        self._normalised: Node | None = None

    def visit(self, node: Node, dims: Dims, core: Core | None) -> Node:
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
        made = self._made(node, dims, core)
        self._seen[node] = (dims, made)
        return made

    def dims(self, node: Node) -> Dims:
        """The axes that a value was visited with."""
        return resolve(self._seen[node][0])

    def _made(self, node: Node, dims: Dims, core: Core | None) -> Node:
        if core is not None and node is core.node:
            return self._core(core, dims)
        if node not in self.inside:
            return self.inputs(node, dims)
        op = self.view.op(node)
        if op.kind is Kind.DROPOUT:
            return self.visit(op.args["input"], dims, core)
        if op.kind is Kind.VIEW:
            return self.visit(*pull_view(op, node, dims), core)
        pulled = pull_pointwise(op, node, dims)
        mapped = {source: self.visit(source, axes, core) for source, axes in pulled.items()}
        return self.builder.pointwise(op, node, mapped)

    def _core(self, core: Core, dims: Dims) -> Node:
        self.core_dims = dims
        result = self.builder.input("n")
        for factor in core.factors:
            if isinstance(factor, Node):
                factor = self.inputs(factor, broadcast(dims, value(factor).shape))
            result = self.builder.call(torch.mul, result, factor)
        for parameter, combine in ((core.weight, torch.mul), (core.bias, torch.add)):
            if parameter is not None:
                axes = broadcast(core.along(dims, parameter), value(parameter).shape)
                wide = self.inputs(parameter, axes)
                if value(parameter).dtype is not torch.float32:
                    wide = self.builder.graph.call_method("to", (wide,), {"dtype": torch.float32})
                result = self.builder.call(combine, result, wide)
        return self._cast(result, core)

    def _cast(self, node: Node, core: Core) -> Node:
        dtype = value(core.node).dtype
        if dtype is core.dtype:
            return node
        return self.builder.graph.call_method("to", (node,), {"dtype": dtype})


def _after(view: GraphView, core: Core) -> list[Node]:
    """The normalised tensor, and after it what is pointwise; the last is all that others read."""
    taken, best = [core.node], 1
    pending = _readers(view, core.node)
    while pending and len(taken) < MAX_STEPS:
        node = min(pending, key=view.order.__getitem__)
        pending.discard(node)
        read = next(source for source in node.all_input_nodes if source in taken)
        if not (_rearranges(view, node) or _joins(view, node, read)):
            break
        taken.append(node)
        pending |= _readers(view, node)
        if not pending - _readers(view, node) and _closed(view, taken):
            best = len(taken)
    while best > 1 and (_is_copy(view, taken[best - 1]) or _rearranges(view, taken[best - 1])):
        best -= 1  # who reads it may read what it is a copy of
    return taken[:best]


def _is_copy(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    return op.kind is Kind.POINTWISE and loses_nothing(op, node)


def _readers(view: GraphView, node: Node) -> set[Node]:
    return {user for user in node.users if not reads_shape_alone(view, user, node)}


def _closed(view: GraphView, nodes: list[Node]) -> bool:
    """Whether the last alone is read by others."""
    inside = set(nodes)
    return all(_readers(view, node) <= inside for node in nodes[:-1])


def _joins(view: GraphView, node: Node, like: Node) -> bool:
    """Whether an operator may be a part of a program over tensors of one shape."""
    op = view.op(node)
    if op.inplace or not is_tensor(node) or not same_shape(node, like):
        return False
    if op.kind is Kind.DROPOUT:
        return not draws(node, op)
    return op.kind is Kind.POINTWISE and _is_plain(op, node)


def _is_plain(op: Op, node: Node) -> bool:
    """Whether every number that an operator reads is known, and its result is one of ours."""
    numbers = [n for n in node.all_input_nodes if not is_tensor(n)]
    return not numbers and value(node).dtype in DTYPES and not draws(node, op)


def _rearranges(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    return op.kind is Kind.VIEW and op.name in REARRANGED and not op.inplace and is_tensor(node)


def _source(
    view: GraphView, node: Node, inside: set[Node], kept: Node | None = None
) -> tuple[set[Node], Node]:
    """What a tensor is a rearrangement of, and the views between: read for it alone, or `kept`."""
    passed: set[Node] = set()
    while _rearranges(view, node) and (node is kept or _readers(view, node) <= inside | passed):
        passed.add(node)
        node = view.op(node).args["input"]
    return passed, node


def _kept(view: GraphView, core: Core, out: Node) -> Node | None:
    """What is normalised, where others read it too, all of them after the region."""
    passed, x = _source(view, core.x, set(core.interior))
    others = _readers(view, x) - core.interior - passed
    later = bool(others) and all(view.order[node] > view.order[out] for node in others)
    return x if later else None


def _before(view: GraphView, core: Core, kept: Node | None) -> set[Node]:
    """What is pointwise above, and read for the normalisation alone; but what is `kept`."""
    inside = set(core.interior)
    found: set[Node] = set()
    pending = [(core.x, core.x)]
    while pending and len(found) < MAX_BEFORE:
        node, like = pending.pop()
        passed, source = _source(view, node, inside, kept)
        like = source if passed else like
        alone = source is kept or _readers(view, source) <= inside | passed
        if source in found or not alone or not _joins(view, source, like):
            continue
        found |= {*passed, source}
        inside |= found
        pending += [(n, like) for n in source.all_input_nodes if is_tensor(n)]
    return found


def _require_dtypes(core: Core) -> None:
    for node in (core.x, core.node):
        dtype = value(node).dtype
        if dtype not in DTYPES:
            name = str(dtype).removeprefix("torch.")
            raise Declined(f"it is computed in {name}", core.node)


def _facts(spec: NormSpec) -> dict[str, str]:
    squares = "sum of squares" if spec.summed else "mean square"
    kind = "mean and variance" if spec.centred else squares
    eps = f"at least {spec.eps:g}" if spec.floor else f"+ {spec.eps:g}"
    return {
        "statistics": f"{kind}, {eps}",
        "before": spec.before.formula(),
        "after": spec.after.formula(),
    }
