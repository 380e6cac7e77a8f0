"""What both walks up an attention share: why they stop, what they capture, which views they peel.

    contract(q, k) -> score program -> softmax -> probability program -> contract(p, v)

`probabilities.ProbabilityWalk` goes from the operand p up to every softmax, `scores.ScoreWalk` from
the input of one softmax up to its contractions. Both record what they passed (`interior`), what
they captured, and the pointwise programs; each step proves which axes it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Unproven, resolve
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.program import ProgramBuilder
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView

from ..captured import Captured, Inputs, loses_nothing

WRONG_AXIS = "the softmax runs over another axis than the one that is contracted with v"
WRONG_AXIS_HINT = "use dim=-1, or transpose the probabilities before the product with v"
EMPTY = "a tensor is empty"
MAX_NODES = 256
"""Longest score program considered; keeps matching linear in the size of the graph."""


_DETACH = ("detach", torch.detach, torch.Tensor.detach, torch.ops.aten.detach.default)


@dataclass
class Source:
    """One softmax and the way from it to p: its scores, dtype, sink and probability steps."""

    softmax: Node
    scores: Node
    dims: Dims
    dtype: torch.dtype
    steps: tuple[tuple[str, Any], ...] = ()
    """Applied in order: ("op", (op, node, dims by input)), ("neg", None)."""
    sink: tuple[Node, Dims] | str | None = None
    dropout: float = 0.0
    fixed: tuple[tuple[Axis, int], ...] = ()
    """Axes of the softmax at which p is one index: a part of its heads."""


def probability_program(source: Source, captured: Captured) -> tuple[ProgramBuilder, Node]:
    """The steps between one softmax and p as a program with the input `p`."""
    builder = ProgramBuilder()
    inputs = Inputs(builder, captured)
    current = builder.input("p")
    for kind, detail in source.steps:
        if kind == "neg":
            current = builder.call(torch.neg, current)
            continue
        op, node, pulled, inner = detail
        mapped: dict[Node, Node] = {inner: current}
        for other, dims in pulled.items():
            if other is not inner:
                mapped[other] = inputs(other, dims)
        for other in node.all_input_nodes:
            if other not in mapped and not is_tensor(other):
                mapped[other] = inputs(other, ())
        current = builder.pointwise(op, node, mapped)
    return builder, current


def peel(
    view: GraphView, node: Node, dims: Dims, reader: Node, *, values: bool = False
) -> list[tuple[Node, Dims]]:
    """An operand and everything above it that it is only a view, or a copy, of; nearest first.

    What was written to before its reader read it is no copy any more. With `values` nothing but the
    numbers count, so that what stops the gradient is passed too.
    """
    found = [(node, dims)]
    for _ in range(32):
        op = view.op(node)
        if view.is_written(node, reader):
            break
        reader = node
        if op.kind is Kind.VIEW and not op.inplace:
            try:
                node, dims = pull_view(op, node, dims)
            except Unproven:
                break
        elif op.kind is Kind.POINTWISE and loses_nothing(op, node):
            node = op.args["input"]
        elif values and node.target in _DETACH and is_tensor(node.args[0]):
            (node,) = node.all_input_nodes
        else:
            break
        found.append((node, dims))
    return [(n, resolve(d)) for n, d in found]


def is_empty(node: Node) -> bool:
    """Whether a dimension is zero; a symbolic one never is."""
    return any(isinstance(size, int) and size == 0 for size in value(node).shape)
