"""Insert calls that run under the modes which a captured graph has switched on before."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import Unproven
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


@contextlib.contextmanager
def modes_at(view: GraphView, node: Node) -> Generator[None]:
    """The autocast and grad mode under which a node of the graph runs.

    Raises:
        Unproven: another mode is switched before the node.
    """
    casts: dict[Any, Any] = {}
    with contextlib.ExitStack() as stack:
        for switch in (view.nodes[p] for p in view.mode_switches if p < view.order[node]):
            name = getattr(switch.target, "__name__", "")
            if "_enter_autocast" in name:
                casts[switch] = torch.autocast(*switch.args, **switch.kwargs)  # type: ignore[arg-type]
            elif "_exit_autocast" in name:
                casts.pop(switch.args[0], None)
            elif "_set_grad_enabled" in name:
                stack.enter_context(torch.set_grad_enabled(bool(switch.args[0])))
            else:
                raise Unproven(f"a mode is switched before it, by `{switch.name}`")
        for cast in casts.values():
            stack.enter_context(cast)
        yield
