"""The canonical view of a graph: nodes read as `Op`s, positions, storage, mutations. Read only.

Everything here is computed in one pass over the nodes and looked up afterwards, so that the cost of
matching grows linearly with the graph.
"""

from __future__ import annotations

from enum import Flag, auto
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..torch_private import memory, symbols, unbacked
from .effects import draws, written
from .ops import Kind, Op, is_tensor, read, value


class Mark(Flag):
    """What a value was made from, through operators that keep positions apart."""

    NONE = 0
    SCORES = auto()
    """A contraction is among the ancestors."""
    PROBS = auto()
    """A softmax, or an exponential, is among the ancestors."""


_SPREADS_SCORES = {Kind.POINTWISE, Kind.VIEW, Kind.CAT, Kind.SLICE}
_SPREADS_PROBS = {Kind.POINTWISE, Kind.VIEW, Kind.SLICE, Kind.DROPOUT}
_MODE_SWITCHES = ("_enter_autocast", "_exit_autocast", "_set_grad_enabled", "inference_mode")


class GraphView:
    """A graph module under examination.

    Attributes:
        module: the graph module; never mutated through the view.
        nodes: its nodes in order.
        order: position of every node.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.graph: Graph = module.graph
        self.nodes: tuple[Node, ...] = tuple(module.graph.nodes)
        self.order: dict[Node, int] = {node: i for i, node in enumerate(self.nodes)}
        self._ops: dict[Node, Op] = {}

    def op(self, node: Node) -> Op:
        """The node read canonically."""
        found = self._ops.get(node)
        if found is None:
            found = self._ops[node] = read(node)
        return found

    @cached_property
    def marks(self) -> dict[Node, Mark]:
        """Per node, whether scores or probabilities reach it."""
        marks: dict[Node, Mark] = {}
        for node in self.nodes:
            kind = self.op(node).kind
            mark = Mark.NONE
            for source in node.all_input_nodes:
                before = marks[source]
                if kind in _SPREADS_SCORES:
                    mark |= before & Mark.SCORES
                if kind in _SPREADS_PROBS:
                    mark |= before & Mark.PROBS
            if kind is Kind.CONTRACT:
                mark = Mark.SCORES
            elif kind is Kind.SOFTMAX or self.op(node).name == "exp":
                mark |= Mark.PROBS
            marks[node] = mark
        return marks

    @cached_property
    def size_sources(self) -> tuple[Node, ...]:
        """Graph inputs from which a symbolic size can be read: sizes themselves, then tensors."""
        inputs = [n for n in self.nodes if n.op == "placeholder"]
        sizes = [n for n in inputs if isinstance(value(n), torch.SymInt)]
        tensors = [n for n in inputs if is_tensor(n)]
        symbolic = [t for t in tensors if any(not isinstance(s, int) for s in value(t).shape)]
        return (*sizes, *symbolic)

    @cached_property
    def input_symbols(self) -> frozenset[Any]:
        """Symbols whose numbers the graph's inputs tell; others come from data."""
        found: set[Any] = set()
        for node in self.nodes:
            example = value(node)
            if node.op not in ("placeholder", "get_attr"):
                continue
            if isinstance(example, torch.Tensor):
                sizes = (*example.shape, *example.stride(), example.storage_offset())
            else:
                sizes = (example,) if isinstance(example, torch.SymInt) else ()
            found |= symbols(sizes) - unbacked(sizes)
        return frozenset(found)

    @cached_property
    def mutations(self) -> tuple[tuple[int, Node], ...]:
        """Every node that writes to a tensor in place: its position and the tensor it writes to."""
        found: list[tuple[int, Node]] = []
        for node in self.nodes:
            found.extend((self.order[node], target) for target in written(node, self.op(node)))
        return tuple(found)

    @cached_property
    def random_positions(self) -> tuple[int, ...]:
        """Positions of the operators that draw random numbers."""
        return tuple(i for i, node in enumerate(self.nodes) if draws(node, self.op(node)))

    @cached_property
    def mode_switches(self) -> tuple[int, ...]:
        """Positions where autocast or grad mode changes."""
        return tuple(
            i
            for i, node in enumerate(self.nodes)
            if node.op == "call_function"
            and any(s in getattr(node.target, "__name__", "") for s in _MODE_SWITCHES)
        )

    @cached_property
    def transformed(self) -> tuple[tuple[int, int], ...]:
        """Spans of positions inside a torch.func transform (vmap, grad, jvp), where values have
        hidden dimensions and derivatives of their own."""
        spans: list[tuple[int, int]] = []
        opened: list[int] = []
        for i, node in enumerate(self.nodes):
            name = getattr(node.target, "__name__", "")
            if "increment_nesting" in name or "_enter_dual_level" in name:
                opened.append(i)
            elif opened and ("decrement_nesting" in name or "_exit_dual_level" in name):
                spans.append((opened.pop(), i))
        return (*spans, *((start, len(self.nodes)) for start in opened))

    @cached_property
    def storages(self) -> dict[Node, Any]:
        """Per tensor node a key that is equal for tensors which may share memory."""
        keys: dict[Node, Any] = {}
        for node in self.nodes:
            example = value(node)
            if not isinstance(example, torch.Tensor):
                continue
            op = self.op(node)
            source = op.args.get("input")
            if (op.kind in (Kind.VIEW, Kind.SLICE) or op.inplace) and source in keys:
                keys[node] = keys[source]
                continue
            try:
                keys[node] = memory(example)
            except (NotImplementedError, RuntimeError):
                keys[node] = node
        return keys

    @cached_property
    def sharing(self) -> dict[Any, list[Node]]:
        """Per key of `storages` the tensors that have it, in order."""
        groups: dict[Any, list[Node]] = {}
        for node, key in self.storages.items():
            groups.setdefault(key, []).append(node)
        return groups

    def is_written(self, node: Node, reader: Node | None = None) -> bool:
        """Whether a tensor is written to after it was made, up to a `reader` or to the end."""
        end = len(self.order) if reader is None else self.order[reader]
        return self.mutated_between(node, self.order[node] + 1, end) is not None

    def mutated_between(self, node: Node, first: int, last: int) -> Node | None:
        """A node that writes to memory shared with `node` at a position in [first, last)."""
        if not self.mutations:
            return None
        storages = self.storages
        key = storages.get(node)
        for position, target in self.mutations:
            if first <= position < last and (target is node or storages.get(target) == key):
                return self.nodes[position]
        return None
