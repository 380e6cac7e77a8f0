"""Values that are known while compiling: nodes with no graph input among their ancestors.

In every unpadded decoder the attention mask is one of them. They are computed once, on the CPU,
with real tensors; nothing is baked into the graph unless a lowering decides so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from ..torch_private import eager_world
from .ops import is_tensor, value
from .view import GraphView

MAX_ELEMENTS = 1 << 27
"""Largest tensor that is computed while compiling: 128 Mi elements."""


class Folder:
    """Evaluates input-free subgraphs of one graph, lazily and once."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self._constant = _constants(view)
        self._values: dict[Node, Any] = {}

    def is_known(self, node: Node) -> bool:
        return node in self._constant

    def tensor(self, node: Node) -> torch.Tensor | None:
        """The value of a node, or None where it depends on an input, or fails."""
        if node not in self._constant or not is_tensor(node):
            return None
        try:
            with eager_world():
                found = self._evaluate(node)
        except Exception:  # a value that cannot be computed here is merely unknown
            self._constant.discard(node)
            return None
        return found if isinstance(found, torch.Tensor) else None

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
            self._values[current] = self._run(current)
            pending.pop()
        return self._values[node]

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
    """One pass: nodes all of whose ancestors are constants, drawn by nobody, written by nobody."""
    random = set(view.random_positions)
    written = {target for _, target in view.mutations}
    dirty = {view.storages.get(target) for target in written} - {None}
    constant: set[Node] = set()
    for position, node in enumerate(view.nodes):
        if node.op not in ("call_function", "call_method", "get_attr") or position in random:
            continue
        if node.op == "get_attr" and not isinstance(value(node), torch.Tensor):
            continue
        example = value(node)
        if isinstance(example, torch.Tensor):
            if view.storages.get(node) in dirty or node in written:
                continue
            if any(not isinstance(s, int) for s in example.shape):
                continue
            if example.numel() > MAX_ELEMENTS:
                continue
        if _has_effect(node) or any(n not in constant for n in node.all_input_nodes):
            continue
        constant.add(node)
    return constant


def _has_effect(node: Node) -> bool:
    """Mode switches, logging and other calls that are made for what they do."""
    if node.op == "get_attr":
        return False
    return value(node) is None
