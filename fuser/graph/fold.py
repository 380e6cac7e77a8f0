"""Values that are known while compiling: nodes with no graph input among their ancestors.

In every unpadded decoder the attention mask is one of them. They are computed once, on the CPU,
with real tensors; nothing is baked into the graph unless a lowering decides so. Tensors that are
filled in place are known too, as long as everything written to them is and nobody reads them before
they are complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from ..swallowed import swallow
from ..torch_private import eager_world, memory
from .ops import is_tensor, value
from .view import GraphView

MAX_ELEMENTS = 1 << 27
"""Largest tensor that is computed while compiling: 128 Mi elements."""
MAX_ROUNDS = 8
"""Times that tensors are found to be no constants because of others, before no written one is."""


class Folder:
    """Evaluates input-free subgraphs of one graph, lazily and once."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self._constant = _constants(view)
        self._writes = [view.nodes[p] for p, _ in view.mutations if view.nodes[p] in self._constant]
        self._values: dict[Node, Any] = {}

    def is_known(self, node: Node) -> bool:
        return node in self._constant

    def tensor(self, node: Node) -> torch.Tensor | None:
        """The value of a node, or None where it depends on an input, or fails."""
        if node not in self._constant or not is_tensor(node):
            return None
        try:
            with eager_world():
                if self._writes:
                    self._evaluate_in_order()
                found = self._evaluate(node)
        except Exception as error:  # a value that cannot be computed here is merely unknown
            swallow(error)
            self._constant.discard(node)
            return None
        return found if isinstance(found, torch.Tensor) else None

    def _evaluate_in_order(self) -> None:
        """All constants up to the last write, in the order of the graph; a failure clears all."""
        last = self.view.order[self._writes[-1]]
        self._writes = []
        try:
            for node in self.view.nodes[: last + 1]:
                if node in self._constant:
                    self._evaluate(node)
        except Exception:
            self._constant.clear()
            raise

    def _evaluate(self, node: Node) -> Any:
        pending = [node]
        while pending:
            current = pending[-1]
            if current in self._values:
                pending.pop()
                continue
            missing = [n for n in current.all_input_nodes if n not in self._values]
            if missing:
                pending.extend(missing)
                continue
            self._values[current] = self._separate(current, self._run(current))
            pending.pop()
        return self._values[node]

    def _separate(self, node: Node, found: Any) -> Any:
        """A copy to another device is one here too, where both devices are the CPU."""
        storages = self.view.storages
        if isinstance(found, torch.Tensor) and any(
            isinstance(known := self._values[source], torch.Tensor)
            and memory(known) == memory(found)
            and storages.get(source) != storages.get(node)
            for source in node.all_input_nodes
        ):
            return found.clone()
        return found

    def _run(self, node: Node) -> Any:
        if node.op == "get_attr":
            found: Any = self.view.module
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return found.cpu() if isinstance(found, torch.Tensor) else found
        args = map_arg(node.args, self._values.__getitem__)
        kwargs = map_arg(node.kwargs, self._values.__getitem__)
        args, kwargs = _on_cpu(args), _on_cpu(dict(kwargs))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _on_cpu(argument: Any) -> Any:
    if isinstance(argument, torch.device):
        return torch.device("cpu")
    if isinstance(argument, (tuple, list)):
        return type(argument)(map(_on_cpu, argument))
    if isinstance(argument, dict):
        return {k: _on_cpu(v) for k, v in argument.items()}
    return argument


def _constants(view: GraphView) -> set[Node]:
    """Nodes all of whose ancestors, and everything that is written to them, are constants."""
    writers: dict[Any, list[Node]] = {}
    for position, target in view.mutations:
        writers.setdefault(view.storages.get(target), []).append(view.nodes[position])
    members: dict[Any, list[Node]] = {key: [] for key in writers}
    for node, key in view.storages.items() if writers else ():
        if key in members:
            members[key].append(node)
    unclear: set[Any] = set()
    for _ in range(MAX_ROUNDS):
        constant = _candidates(view, writers, unclear)
        found = {
            key
            for key in writers
            if key not in unclear and not _settles(view, members[key], writers[key], constant)
        }
        if not found:
            return constant
        unclear |= found
    return _candidates(view, writers, set(writers))


def _candidates(view: GraphView, writers: Mapping[Any, object], unclear: set[Any]) -> set[Node]:
    """One pass; memory in `unclear` may hold anything."""
    random = set(view.random_positions)
    writing = {view.nodes[position] for position, _ in view.mutations}
    constant: set[Node] = set()
    for position, node in enumerate(view.nodes):
        if node.op not in ("call_function", "call_method", "get_attr") or position in random:
            continue
        example, memory = value(node), view.storages.get(node) if writers else None
        if memory in unclear or (node.op == "get_attr" and memory in writers):
            continue  # an attribute that is written to differs from call to call
        if isinstance(example, torch.Tensor):
            if any(not isinstance(s, int) for s in example.shape):
                continue
            if example.numel() > MAX_ELEMENTS:
                continue
        elif node.op == "get_attr" or (example is None and node not in writing):
            continue  # mode switches, logging and other calls that are made for what they do
        if all(n in constant for n in node.all_input_nodes):
            constant.add(node)
    return constant


def _settles(
    view: GraphView, members: Sequence[Node], writers: Sequence[Node], constant: set[Node]
) -> bool:
    """Whether memory is written to by constants alone, and read by others only after that."""
    if any(node not in constant for node in writers):
        return False
    complete = max(map(view.order.__getitem__, writers))
    readers = [user for node in members for user in node.users if user not in constant]
    return all(view.order[user] > complete for user in readers)
