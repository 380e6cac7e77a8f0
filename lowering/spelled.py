"""Programs as ordinary nodes of the user's graph, for Inductor to fuse with what is around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fuser.builder import Builder


def spell(builder: Builder, graph: Graph, known: Mapping[Node, Any]) -> Any:
    """The result of a program's graph.

    Args:
        known: nodes of the user's graph by those of the program; inputs that are read, at least.
    """
    made = dict(known)
    for node in graph.nodes:
        if node in made or node.op == "placeholder":
            continue
        if node.op == "output":
            return made[node.args[0]]
        try:
            args, kwargs = map_arg((node.args, node.kwargs), made.__getitem__)
        except KeyError:
            continue  # what leads to a known node alone
        if node.op == "call_method":
            made[node] = builder.method(str(node.target), *args, **kwargs)
        else:
            made[node] = builder.call(node.target, *args, **kwargs)
    raise AssertionError("a program without a result")
