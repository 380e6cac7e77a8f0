"""What stands, in the small graph of a region, for nodes of the captured graph that it reads."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import Graph, Node

from .graph.ops import value
from .torch_private import hint


class Unrehearsable(Exception):
    """There is no way to run the region by itself; the message says why."""


class Standing(dict[Node, Node]):
    """By node of the captured graph, a node of a small one; found when it is asked for.

    A tensor is an input, and a size the number that it is in the example: no guard is made of it.
    """

    def __init__(self, graph: Graph, tensors: Iterable[Node] | None = None) -> None:
        """
        Args:
            graph: the small one, empty.
            tensors: its inputs, in order; None where any may be read.
        """
        super().__init__()
        self._graph, self._open = graph, True
        self.output = graph.output(())
        for node in tensors or ():
            self[node] = self._input(node)
        self._open = tensors is None

    def __contains__(self, node: object) -> bool:
        if not isinstance(node, Node) or node.graph is self._graph:
            return False
        if not super().__contains__(node):
            size = isinstance(value(node), torch.SymInt)
            self[node] = self._size(node) if size else self._input(node)
        return True

    def _input(self, node: Node) -> Node:
        if not isinstance(value(node), torch.Tensor):
            raise Unrehearsable("an operand is no tensor")
        if not self._open:
            raise Unrehearsable(f"the replacement reads `{node.name}`, which is no operand of it")
        made = [n for n in self._graph.nodes if n.op == "placeholder"]
        first = next(n for n in self._graph.nodes if n.op != "placeholder")
        with self._graph.inserting_before(first):
            found = self._graph.placeholder(f"x{len(made)}")
        found.meta["example_value"] = value(node)
        return found

    def _size(self, node: Node) -> Node:
        with self._graph.inserting_before(self.output):
            found = self._graph.call_function(int, (number(value(node)),))
        found.meta["example_value"] = value(node)
        return found

    def clean(self) -> None:
        """Take back sizes that nobody reads."""
        for node in list(self.values()):
            if node.target is int and not node.users:
                self._graph.erase_node(node)


def number(size: int | torch.SymInt) -> int:
    """A size as it is in the example.

    Raises:
        Unrehearsable: it is counted in the data.
    """
    found = hint(size)
    if found is None:
        raise Unrehearsable("a size is counted in the data")
    return found
