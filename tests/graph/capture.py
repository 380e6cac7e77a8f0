"""Graphs as Dynamo hands them over, for tests that look at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from fuser.graph.view import GraphView


def captured(fn: Callable[..., Any], inputs: Sequence[Any], *, dynamic: bool = False) -> GraphView:
    """The view of the single graph that Dynamo makes of a function."""
    torch._dynamo.reset()
    graphs: list[GraphModule] = []

    def keep(gm: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    torch.compile(fn, backend=keep, fullgraph=True, dynamic=dynamic)(*inputs)
    (graph,) = graphs
    return GraphView(graph)


def named(view: GraphView, name: str, index: int = 0) -> Node:
    """The node with this canonical operator."""
    return [n for n in view.nodes if view.op(n).name == name][index]


def last(view: GraphView) -> Node:
    """What the graph returns first."""
    (output,) = (n for n in view.nodes if n.op == "output")
    return output.all_input_nodes[0]
