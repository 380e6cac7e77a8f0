"""Bodies of activation checkpoints: graphs that are taken apart as well, and run as they are run.

A part of a body runs within the operator that the body runs in. So what the backward computes
again is in its time, and what is kept for it is what would be kept. It is not in its work, which is
what a step cannot do without.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..graph.ops import value
from ..graph.view import GraphView
from ..verification.observe import inputs_of_bodies, real
from .cutting import Cut


@dataclass(frozen=True)
class Body:
    """A body, with the call that runs it.

    Attributes:
        captured: nobody rewrites it.
        call: in a graph that nobody rewrites.
        inputs: with which it is called.
    """

    captured: GraphModule
    call: Node
    inputs: Sequence[Any]


def bodies_of(
    module: GraphModule, captured: GraphModule, inputs: Sequence[Any]
) -> dict[GraphModule, Body]:
    """Bodies of all checkpoints in a graph, those within others too.

    Args:
        module: the graph whose bodies are the keys.
        captured: a duplicate.
        inputs: of this call.

    Raises:
        Unobservable: the graph may not be run twice.
    """
    calls = list(_calls(captured))
    if not calls:
        return {}
    given, found = inputs_of_bodies(captured, real(inputs)), dict[GraphModule, Body]()
    for call, name in calls:
        own, other = getattr(module, name), getattr(captured, name)
        found[own] = Body(other, call, given[other])
        found |= bodies_of(own, other, given[other])
    return found


def _calls(module: GraphModule) -> Iterator[tuple[Node, str]]:
    """Checkpoints, and the names of their bodies; those of one body that is called once."""
    for node in module.graph.nodes:
        if node.op != "call_function" or "checkpoint" not in getattr(node.target, "__name__", ""):
            continue
        body = node.args[0] if node.args else None
        if isinstance(body, Node) and body.op == "get_attr" and len(body.users) == 1:
            if not any(isinstance(x, Node) for x in node.kwargs.values()):
                yield node, str(body.target)


def cuts_of(view: GraphView, taken: Container[GraphModule]) -> dict[GraphModule, Cut]:
    """The calls of bodies that were taken apart."""
    found = {}
    for call, name in _calls(view.module):
        body = getattr(view.module, name)
        results = [n for n in call.users if n.target is operator.getitem]
        if body in taken and len(results) == len(call.users):
            inputs = tuple(n for n in call.all_input_nodes if isinstance(value(n), Tensor))
            nodes = frozenset([call, *results])
            found[body] = Cut(inputs, tuple(results), nodes, nodes)
    return found


def within(call: Node | None, module: GraphModule) -> GraphModule:
    """A part of the body of a call, run as that runs it; without a call, as it is."""
    if call is None:
        return module
    graph, target = Graph(), cast(Callable[..., Any], call.target)
    inputs = [graph.placeholder(n.name) for n in module.graph.nodes if n.op == "placeholder"]
    made = graph.call_function(target, (graph.get_attr("body"), *inputs), dict(call.kwargs))
    results: Any = module.graph.output_node().args[0]
    graph.output([graph.call_function(operator.getitem, (made, i)) for i in range(len(results))])
    module.meta.update(_body(call).meta)  # what a selective checkpoint keeps
    return GraphModule({"body": module}, graph)


def _body(call: Node) -> GraphModule:
    found: Any = call.args[0]
    body: GraphModule = getattr(found.graph.owning_module, found.target)
    return body
