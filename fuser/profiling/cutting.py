"""How a graph is cut: without its regions, and as it was before anything in it was rewritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..graph.fold import Folder
from ..graph.ops import value
from ..graph.view import GraphView
from ..rehearsal import Rehearsal
from ..standing import number


def structure(graph: Graph) -> list[Any]:
    """The same for graphs that differ in the names of their nodes alone."""
    number = {node: i for i, node in enumerate(graph.nodes)}

    def numbered(node: Node) -> str:
        return f"%{number[node]}"

    return [
        (
            node.op,
            "" if node.op in ("placeholder", "output") else str(node.target),
            torch.fx.map_arg(node.args, numbered),  # type: ignore[arg-type]
            torch.fx.map_arg(node.kwargs, numbered),  # type: ignore[arg-type]
        )
        for node in graph.nodes
    ]


def duplicate(module: GraphModule) -> GraphModule:
    """A graph that stays as it is when this one is rewritten, and bodies in it are; parameters are
    shared."""
    graph = Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    found = GraphModule(module, graph)
    for name, body in _bodies(module).items():
        setattr(found, name, duplicate(body))
    return found


def _bodies(module: GraphModule) -> dict[str, GraphModule]:
    """Graphs that higher-order operators of this one run."""
    names = [str(n.target) for n in module.graph.nodes if n.op == "get_attr"]
    found = {name: getattr(module, name, None) for name in names}
    return {name: body for name, body in found.items() if isinstance(body, GraphModule)}


def with_constants(rehearsal: Rehearsal, folder: Folder) -> GraphModule:
    """The original, with what it reads and depends on no input, a mask say: the inner backend
    computes that where it is read."""
    module, made = rehearsal.original(), dict[Node, Node]()
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    first = next(n for n in module.graph.nodes if n.op != "placeholder")

    def copied(node: Node) -> Node:
        if node not in made:
            found = {n: copied(n) for n in node.all_input_nodes}
            with module.graph.inserting_before(first):
                made[node] = module.graph.node_copy(node, found.__getitem__)
            made[node].meta = {}
        return made[node]

    for node, stands in zip(rehearsal.inputs, inputs, strict=True):
        if folder.is_known(node) and _is_made_there(node):
            stands.replace_all_uses_with(copied(node))
    module.recompile()
    return module


def _is_made_there(node: Node) -> bool:
    """Whether a constant is made by operators alone."""
    called = node.op in ("call_function", "call_method")
    return called and all(map(_is_made_there, node.all_input_nodes))


def read_by(module: GraphModule, inputs: Sequence[Node]) -> list[Node]:
    """Those nodes whose placeholders are used."""
    made = [n for n in module.graph.nodes if n.op == "placeholder"]
    return [node for node, stands in zip(inputs, made, strict=True) if stands.users]


def left_without(view: GraphView, cuts: Sequence[Rehearsal], read: Sequence[Node]) -> GraphModule:
    """The graph without its regions."""
    graph, made = Graph(), dict[Node, Node]()
    gone = {node for rehearsal in cuts for node in rehearsal.match.nodes}
    for node in view.nodes:
        if node.op == "placeholder":
            made[node] = graph.node_copy(node, made.__getitem__)
    for i, node in enumerate(n for r in cuts for n in r.match.outputs):
        made[node] = graph.placeholder(f"region_{i}")

    def look(node: Node) -> Node:
        """A node of the region that something outside reads has its shape read alone."""
        if node not in made:
            sizes = [number(size) for size in value(node).shape]
            keywords = {"dtype": value(node).dtype, "device": value(node).device}
            made[node] = graph.call_function(torch.empty, (sizes,), keywords)
        return made[node]

    for node in view.nodes:
        if node.op == "output":
            own = [made[n] for n in node.all_input_nodes]
            inner = [n for n in read if n.op != "placeholder"]
            graph.output(tuple(dict.fromkeys([*own, *(made[n] for n in inner)])))
        elif node not in made and node not in gone:
            made[node] = graph.node_copy(node, look)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "call_method", "get_attr") and not node.users:
            if not (node.is_impure() or str(node.target).endswith("_")):
                graph.erase_node(node)
    return GraphModule(view.module, graph)


def with_bodies(module: GraphModule, captured: GraphModule) -> GraphModule:
    """A graph with its bodies as they were captured."""
    found = duplicate(module)
    for name in _bodies(module).keys() & _bodies(captured).keys():
        setattr(found, name, getattr(captured, name))
    return found
