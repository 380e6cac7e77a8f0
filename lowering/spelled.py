"""Programs as ordinary nodes of the user's graph, for Inductor to fuse with what is around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from fuser.builder import Builder


class Speller:
    """Spells nodes of programs out, each once, and nothing that no result needs."""

    def __init__(
        self,
        builder: Builder,
        read: Callable[[str], Node],
        known: Mapping[Node, Node] | None = None,
    ) -> None:
        """
        Args:
            builder: of the user's graph.
            read: the user's node of an input, by its name.
            known: what stands for nodes of the program already.
        """
        self.builder, self._read = builder, read
        self._made: dict[Node, Any] = dict(known or {})

    def __call__(self, part: Any) -> Any:
        """What stands for a node of a program; numbers stand for themselves."""
        if not isinstance(part, Node):
            return part
        if part not in self._made:
            self._made[part] = self._spelled(part)
        return self._made[part]

    def _spelled(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self._read(str(node.target))
        args, kwargs = map_arg((node.args, node.kwargs), self)
        if node.op == "output":
            return args[0]
        if node.op == "call_method":
            return self.builder.method(str(node.target), *args, **kwargs)
        return self.builder.call(node.target, *args, **kwargs)  # type: ignore[arg-type]
