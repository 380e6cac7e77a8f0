"""The graph in which new programs are put together, and the tensors that they capture.

Every step is run once on a tensor of one element, so that its dtype is known to be eager's. What no
program reads in the end is left behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fuser.graph.axes import Dims, Unproven, fresh, resolve
from fuser.graph.ops import is_tensor, value
from fuser.graph.program import POSITIONS, Program, ProgramBuilder, gather, rounded, to_json
from fuser.pattern import Operand
from fuser.swallowed import swallow
from fuser.torch_private import eager_world

_HALF = (torch.float16, torch.bfloat16)
_SHAPE = (1, 1, 1, 1)


class Scratch(ProgramBuilder):
    """Steps of all programs of one attention.

    Attributes:
        operands: by input, the tensors that are captured.
        tables: those that are read through `gather` only.
        reads: by step, the captured inputs behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operands: dict[Node, Operand] = {}
        self.tables: dict[Node, Node] = {}
        self.reads: dict[Node, frozenset[Node]] = {}
        self._named: dict[str, Node] = {}
        self._captured: dict[tuple[Node, Dims], Node] = {}

    def named(self, name: str, dtype: torch.dtype | None = None) -> Node:
        """A position, a size, a score or a probability; a size is a number."""
        if name not in self._named:
            example: Any = torch.int64 if name in POSITIONS else dtype
            if example is not None:
                make = torch.zeros if name in POSITIONS else torch.ones
                example = make(_SHAPE, dtype=example)
            self._named[name] = self._input(name, 1 if example is None else example)
        return self._named[name]

    def captured(self, operand: Operand) -> Node:
        """A captured tensor in its place."""
        key = (operand.node, resolve(operand.dims))
        if key not in self._captured:
            self._captured[key] = self._capture(operand)
        return self._captured[key]

    def table(self, node: Node) -> Node:
        """A captured tensor as it is, to be read through `gather`."""
        known = {made_from: made for made, made_from in self.tables.items()}
        if node not in known:
            dims = fresh(value(node).shape, "table")
            known[node] = self._capture(Operand(node, dims, dims))
            self.tables[known[node]] = node
        return known[node]

    def _capture(self, operand: Operand) -> Node:
        node = self._input(f"captured_{len(self.operands)}", _example(operand))
        self.operands[node] = operand
        self.reads[node] = frozenset((node,))
        return node

    def _input(self, name: str, example: Any) -> Node:
        node = self.input(name)
        self.reads[node] = frozenset()
        _describe(node, example)
        return node

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Node:
        return self.run(super().call(function, *args, **kwargs))

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """A value in a dtype; its rounding to half precision is its own."""
        if node.meta["dtype"] is dtype:
            return node
        if dtype in _HALF:
            return self.call(rounded, node, str(dtype).removeprefix("torch."))
        return self.run(self.graph.call_method("to", (node,), {"dtype": dtype}))

    def constant(self, number: float | int | bool, dtype: torch.dtype, *, scalar: bool) -> Node:
        """A constant with dimensions, or a 0-d one."""
        if scalar:
            return self.call(torch.scalar_tensor, number, dtype=dtype)
        return self.call(torch.full_like, self.named("iq"), number, dtype=dtype)

    def run(self, node: Node) -> Node:
        """Find out the dtype of a new step.

        Raises:
            Unproven: it fails.
        """
        for source in node.all_input_nodes:
            if source not in self.reads:
                self.run(source)
        args, kwargs = map_arg((node.args, node.kwargs), _example_of)
        try:
            with eager_world():
                _describe(node, _result(node, args, kwargs))
        except Exception as error:
            swallow(error)
            raise Unproven(f"`{node.name}` cannot be run: {error}") from error
        inputs = (self.reads[n] for n in node.all_input_nodes)
        self.reads[node] = frozenset[Node]().union(*inputs)
        return node

    def append(self, make: Any) -> Node:
        """What `make` adds, with the roundings to half precision spelled out."""
        last = next(iter(reversed(self.graph.nodes)), None)
        made: Node = make()
        added = list[Node]()
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            added.append(node)
        for node in reversed(added):
            dtype = node.kwargs.get("dtype")
            if node.target == "to" and dtype in _HALF:
                node.op, node.target, node.kwargs = "call_function", rounded, {}
                node.args = (node.args[0], str(dtype).removeprefix("torch."))
            if node not in self.reads:
                self.run(node)
        dtype = made.meta["dtype"]
        if dtype in _HALF and made in added and made.target is not rounded:
            # a kernel that widens what is captured must still round what comes of it
            made = self.call(rounded, made, str(dtype).removeprefix("torch."))
        return made

    def needed(self, results: Iterable[Node]) -> list[Node]:
        """Every step behind the results, in order."""
        found: set[Node] = set()
        pending = list(results)
        while pending:
            node = pending.pop()
            if node not in found:
                found.add(node)
                pending.extend(node.all_input_nodes)
        return [node for node in self.graph.nodes if node in found]

    def program(self, result: Node, names: dict[Node, str]) -> Program:
        """The steps behind a result, as a program with these names for captured inputs."""
        graph = Graph()
        copies: dict[Node, Node] = {}
        nodes = self.needed([result])
        for node in nodes:
            if node.op == "placeholder":
                copies[node] = graph.placeholder(names.get(node, str(node.target)))
        for node in nodes:
            if node.op != "placeholder":
                args, kwargs = map_arg((node.args, node.kwargs), copies.__getitem__)
                copies[node] = graph.create_node(node.op, node.target, args, kwargs)
        graph.output(copies[result])
        return Program(to_json(graph))


def _result(node: Node, args: Any, kwargs: Any) -> Any:
    if node.target is gather:
        return torch.ones(_SHAPE, dtype=args[0].dtype)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _example(operand: Operand) -> Tensor:
    if not is_tensor(operand.node):
        return torch.ones((), dtype=torch.float64)
    dtype = operand.dtype if operand.dtype is not None else value(operand.node).dtype
    return torch.ones(_SHAPE if operand.target else (), dtype=dtype)


def _example_of(node: Node) -> Any:
    return node.meta["example"]


def _describe(node: Node, example: Any) -> None:
    node.meta["example"] = example
    node.meta["dtype"] = example.dtype if isinstance(example, Tensor) else None
