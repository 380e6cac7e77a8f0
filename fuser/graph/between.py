"""What stands between two places of a graph: on the way from some nodes to others."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.fx import Node

from .view import GraphView


class Between:
    """Nodes that are made of `starts`, also where those are written into what was there before.

    Attributes:
        made: the nodes; `starts` are not among them.
    """

    def __init__(self, view: GraphView, starts: Collection[Node], end: int) -> None:
        """
        Args:
            view: the graph.
            starts: nodes of it.
            end: position behind the last node that is looked at.
        """
        self._view, self._end = view, end
        self._mixed: set[Any] = set()
        """Memory that something made of `starts` was written to."""
        self.made: set[Node] = set()
        writes: dict[int, list[Node]] = {}
        for position, target in view.mutations:
            writes.setdefault(position, []).append(target)
        self._writes = writes
        for position, node in enumerate(view.nodes[:end]):
            sources = node.all_input_nodes
            if not any(n in starts or n in self.made or self._is_mixed(n) for n in sources):
                continue
            self.made.add(node)
            self._mixed.update(map(self._memory, writes.get(position, ())))

    def __contains__(self, node: Node) -> bool:
        return node in self.made or self._is_mixed(node)

    def writers(self, node: Node) -> list[Node]:
        """All that write to a node's memory, if something made of `starts` was written there."""
        if not self._is_mixed(node):
            return []
        wanted = self._memory(node)
        return [
            self._view.nodes[position]
            for position, targets in self._writes.items()
            if position < self._end and any(self._memory(t) == wanted for t in targets)
        ]

    def _is_mixed(self, node: Node) -> bool:
        return bool(self._mixed) and self._memory(node) in self._mixed

    def _memory(self, node: Node) -> Any:
        return self._view.storages.get(node, node)
