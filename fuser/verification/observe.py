"""Run a captured graph on the real inputs, node by node, and read what its regions read.

It runs without gradients and before the compiled graph does. What the graph writes to is a copy
here, so that the user's tensors are changed once; whoever calls puts the random state back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..graph.effects import is_foreign
from ..graph.view import GraphView
from ..torch_private import FakeTensor, hint, pytree
from ..turns import begin, over


class Unobservable(Exception):
    """The graph cannot be run a second time; the message says why."""


@dataclass(frozen=True)
class Reading:
    """What to read while a graph runs.

    Attributes:
        wanted: nodes whose values are read, each just before the first of `inside` that reads it,
            or at the end; a later writer does not change them.
        inside: nodes, in order; the last of them is the end.
        receive: takes the values of `wanted` at the end.
    """

    wanted: tuple[Node, ...]
    inside: tuple[Node, ...]
    receive: Callable[[list[Any]], None]


def real(inputs: Sequence[Any] | None) -> list[Any]:
    """The inputs of a graph as they are in this call, sizes as numbers.

    Raises:
        Unobservable: they are not known.
    """
    if inputs is None:
        raise Unobservable("the inputs of the graph that it stands in are not known")
    if any(isinstance(x, FakeTensor) for x in inputs):
        raise Unobservable("the graph is compiled without its inputs")
    return [hint(x) if isinstance(x, torch.SymInt) else x for x in inputs]


def observe(view: GraphView, inputs: Sequence[Any], readings: Sequence[Reading]) -> None:
    """Run a graph up to the last of the readings.

    Raises:
        Unobservable: it does what may not be done twice.
        Exception: whatever an operator raises.
    """
    end = 1 + max(view.order[reading.inside[-1]] for reading in readings)
    _require_repeatable(view, view.nodes[:end])
    with torch.no_grad():
        _Observer(view, inputs, readings).run_to(end)


def inputs_of_bodies(module: GraphModule, inputs: Sequence[Any]) -> dict[GraphModule, list[Any]]:
    """With what a graph calls the bodies of its higher-order operators, each for the first time."""
    view = GraphView(module)
    _require_repeatable(view, view.nodes)
    observer = _Observer(view, inputs, ())
    with torch.no_grad():
        observer.run_to(len(view.nodes) - 1)
    return observer.called


def _require_repeatable(view: GraphView, nodes: Sequence[Node]) -> None:
    for node in nodes:
        if is_foreign(node):
            raise Unobservable(f"`{node.name}` in the graph may do more than compute its value")
        home = f"{getattr(node.target, '__module__', '')} {node.target}"
        if "c10d" in home or "distributed" in home:
            raise Unobservable(f"`{node.name}` in the graph waits for other processes")
    if view.transformed:
        raise Unobservable("the graph takes derivatives or is vectorised by torch.func")


class _Observer(Interpreter):
    """Runs the nodes, keeps what readings want, and forgets what nobody reads any more.

    Attributes:
        called: what bodies were called with.
    """

    def __init__(self, view: GraphView, inputs: Sequence[Any], readings: Sequence[Reading]) -> None:
        super().__init__(view.module, garbage_collect_values=False)
        self.args_iter = iter(inputs)
        self._view, self._writes = view, bool(view.mutations)
        self._written = {view.storages.get(target) for _, target in view.mutations}
        self._open: list[Any] = []
        self.called: dict[GraphModule, list[Any]] = {}
        self._attributes: dict[str, Any] = {}
        self._begin: dict[int, list[tuple[Node, dict[Node, Any]]]] = {}
        self._finish: dict[int, list[tuple[Reading, dict[Node, Any]]]] = {}
        self._last: dict[int, list[Node]] = {}
        self._kept: dict[Node, int] = {}
        for reading in readings:
            self._schedule(reading)
        for node in view.nodes:
            last = max((view.order[user] for user in node.users), default=view.order[node])
            self._last.setdefault(max(last, self._kept.get(node, 0)), []).append(node)

    def _schedule(self, reading: Reading) -> None:
        order, values = self._view.order, dict[Node, Any]()
        inside, end = set(reading.inside), order[reading.inside[-1]]
        for node in reading.wanted:
            first = min((order[user] for user in node.users if user in inside), default=end)
            begin = max(first, order[node] + 1)
            self._begin.setdefault(begin, []).append((node, values))
            self._kept[node] = max(begin, self._kept.get(node, 0))
        self._finish.setdefault(end, []).append((reading, values))

    def run_to(self, end: int) -> None:
        """Run the nodes before a position."""
        try:
            for position, node in enumerate(self._view.nodes[:end]):
                for wanted, values in self._begin.get(position, ()):
                    values[wanted] = self._read(wanted)
                self.env[node] = self.run_node(node)
                for reading, values in self._finish.pop(position, ()):
                    reading.receive([values.pop(wanted) for wanted in reading.wanted])
                for unread in self._last.get(position, ()):
                    self.env.pop(unread, None)
        finally:
            for mode in reversed(self._open):
                mode.__exit__(None, None, None)

    def run_node(self, n: Node) -> Any:
        """Runs a node; what it leaves switched on is switched off in the end."""
        found = super().run_node(n)
        name = getattr(n.target, "__name__", "")
        if name.startswith(("_enter_autocast", "_enter_inference_mode")):
            self._open.append(found)
        elif name.startswith(("_exit_autocast", "_exit_inference_mode")):
            self._open.remove(self.env[n.all_input_nodes[0]])
        if n.op == "placeholder" and self._is_written(n):
            return found.clone()
        return found

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Notes down what a body is called with: the last arguments of its operator. Where a loop
        over experts was captured for all of them, it runs for all of them."""
        if target in (begin, over):
            return None
        leaves = pytree.tree_leaves(args)
        for body in leaves:
            if isinstance(body, GraphModule):
                count = sum(node.op == "placeholder" for node in body.graph.nodes)
                given = leaves[len(leaves) - count :]
                copied = [x.clone() if self._copies(x) else x for x in given]
                self.called.setdefault(body, copied)
        return super().call_function(target, args, kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor of the module, or a body."""
        if target not in self._attributes:
            found = super().get_attr(target, args, kwargs)
            self._attributes[target] = found.clone() if self._copies(found) else found
        return self._attributes[target]

    def _is_written(self, node: Node) -> bool:
        return self._writes and self._view.storages.get(node, node) in self._written

    def _read(self, node: Node) -> Any:
        found = self.env[node]
        return found.clone() if self._copies(found) else found

    def _copies(self, found: Any) -> bool:
        """Whether somebody may write to a value while it is kept."""
        return self._writes and isinstance(found, torch.Tensor)
