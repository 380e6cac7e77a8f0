"""Insert calls that run under the modes which a captured graph has switched on before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.view import GraphView


@dataclass(frozen=True)
class Emitter:
    """Insert calls of functions and methods through a builder.

    Equal calls under different modes differ: nothing is shared where a graph switches modes.
    """

    view: GraphView
    builder: Builder

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Node:
        return self._insert("call_function", function, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Node:
        return self._insert("call_method", name, args, kwargs)

    def again(self, node: Node, source: Node) -> Node:
        """The call of a node, with another first argument."""
        return self._insert(node.op, node.target, (source, *node.args[1:]), dict(node.kwargs))

    def _insert(self, op: str, target: Any, args: Any, kwargs: Any) -> Node:
        return self.builder._insert(op, target, args, kwargs, share=not self.view.mode_switches)
