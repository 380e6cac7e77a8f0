"""What programs of every family read from outside, and which steps to it change no number."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, resolve
from fuser.graph.ops import Op, is_tensor, value
from fuser.graph.program import ProgramBuilder


@dataclass
class Captured:
    """Tensors that a program reads, each once for each arrangement.

    Attributes:
        fixed: of each, the axes of which it reads one index alone.
    """

    operands: list[tuple[Node, Dims]] = field(default_factory=list)
    fixed: list[tuple[tuple[Axis, int], ...]] = field(default_factory=list)

    def add(self, node: Node, dims: Dims, fixed: tuple[tuple[Axis, int], ...] = ()) -> str:
        dims = resolve(dims)
        for i, (known, axes) in enumerate(self.operands):
            if known is node and resolve(axes) == dims and self.fixed[i] == fixed:
                return f"c{i}"
        self.operands.append((node, dims))
        self.fixed.append(fixed)
        return f"c{len(self.operands) - 1}"


class Inputs:
    """Program nodes for captured tensors: one placeholder a name."""

    def __init__(self, builder: ProgramBuilder, captured: Captured) -> None:
        self.builder, self.captured = builder, captured
        self._nodes: dict[str, Node] = {}

    def __call__(self, node: Node, dims: Dims) -> Node:
        name = self.captured.add(node, dims)
        if name not in self._nodes:
            self._nodes[name] = self.builder.input(name)
        return self._nodes[name]


def loses_nothing(op: Op, node: Node) -> bool:
    """A copy, or a cast to a dtype that holds every number of the old one."""
    return is_copy(op, node) or _widens(op, node)


def is_copy(op: Op, node: Node) -> bool:
    """Whether a node has the numbers of its input, in memory of its own or not."""
    if op.name in ("clone", "contiguous", "alias"):
        return True
    source = op.args.get("input")
    return (
        is_cast(op)
        and is_tensor(source)
        and value(source).dtype == value(node).dtype
        and value(source).device == value(node).device
    )


def _widens(op: Op, node: Node) -> bool:
    source = op.args.get("input")
    return (
        is_cast(op)
        and is_tensor(source)
        and value(source).dtype in (torch.bfloat16, torch.float16)
        and value(node).dtype is torch.float32
        and value(source).device == value(node).device
    )


def is_cast(op: Op) -> bool:
    return op.name in ("to", "type_as", "type", "float", "half", "bfloat16")
