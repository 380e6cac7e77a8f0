"""How a graph is cut: without its regions, and as it was before anything in it was rewritten."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..graph.fold import Folder
from ..graph.ops import value
from ..graph.view import GraphView
from ..rehearsal import Rehearsal
from ..standing import number
from ..torch_private import memory


@dataclass(frozen=True)
class Cut:
    """What is taken out of a graph.

    Attributes:
        inputs: what it reads.
        outputs: its results, which are inputs of what is left.
        nodes: that go.
        inside: those, and what stands between the inputs and them.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    nodes: frozenset[Node]
    inside: frozenset[Node]

    @staticmethod
    def of(rehearsal: Rehearsal, inputs: tuple[Node, ...]) -> Cut:
        """A region that reads these."""
        match = rehearsal.match
        inside = frozenset([*rehearsal.inside, *match.nodes]) - {*rehearsal.inputs, *inputs}
        return Cut(inputs, tuple(match.outputs), frozenset(match.nodes), inside)


def structure(module: GraphModule) -> list[Any]:
    """The same for graphs that differ in the names of their nodes, and of their bodies, alone."""
    number = {node: i for i, node in enumerate(module.graph.nodes)}
    within = bodies(module)

    def numbered(node: Node) -> str:
        return f"%{number[node]}"

    def named(node: Node) -> Any:
        if node.op in ("placeholder", "output"):
            return ""
        target = str(node.target)
        return structure(within[target]) if target in within else target

    return [
        (
            node.op,
            named(node),
            torch.fx.map_arg(node.args, numbered),  # type: ignore[arg-type]
            torch.fx.map_arg(node.kwargs, numbered),  # type: ignore[arg-type]
        )
        for node in module.graph.nodes
    ]


def duplicate(module: GraphModule) -> GraphModule:
    """A graph that stays as it is when this one is rewritten, and bodies in it are; parameters are
    shared."""
    graph = Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    found = GraphModule(module, graph)
    found.meta.update(module.meta)  # what a selective checkpoint keeps
    for name, body in bodies(module).items():
        setattr(found, name, duplicate(body))
    return found


def bodies(module: GraphModule) -> dict[str, GraphModule]:
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


def base_of(view: GraphView, node: Node, results: Container[Node]) -> Node:
    """What a tensor is a view of: the first that lies in the same memory.

    The gradient of a view is one of all that it is taken from. Where a part ended at three views of
    a projection, what runs the parts would add up their gradients, which nobody does in the step.

    Args:
        view: the graph.
        node: a tensor.
        results: are not looked behind.
    """
    found = at = node
    while at not in results and at.op in ("call_function", "call_method") and not view.mutations:
        source = view.op(at).args.get("input")
        if not isinstance(source, Node):
            break
        at, example = source, value(source)
        if isinstance(example, torch.Tensor):
            if memory(example) != memory(value(node)):
                break
            found = at
    return found


def with_views(module: GraphModule, inputs: Sequence[Node], bases: Sequence[Node]) -> None:
    """Change a part that reads `inputs` to one that reads `bases`, in order and each once, of which
    those are views."""
    old = [n for n in module.graph.nodes if n.op == "placeholder"]
    made = dict[Node, Node]()

    def look(node: Node) -> Any:
        if node in made or isinstance(value(node), torch.SymInt):
            return made[node] if node in made else number(value(node))
        made[node] = module.graph.node_copy(node, look)
        made[node].meta = {}
        return made[node]

    with module.graph.inserting_before(old[0]):
        for i, node in enumerate(bases):
            made[node] = module.graph.placeholder(f"base_{i}")
    first = next(n for n in module.graph.nodes if n.op != "placeholder")
    with module.graph.inserting_before(first):
        for node, stands in zip(inputs, old, strict=True):
            if stands.users:
                stands.replace_all_uses_with(look(node))
    for stands in old:
        module.graph.erase_node(stands)
    module.recompile()


def read_by(module: GraphModule, inputs: Sequence[Node]) -> list[Node]:
    """Those nodes whose placeholders are used."""
    made = [n for n in module.graph.nodes if n.op == "placeholder"]
    return [node for node, stands in zip(inputs, made, strict=True) if stands.users]


def left_without(view: GraphView, cuts: Sequence[Cut], read: Sequence[Node]) -> GraphModule:
    """The graph without what is cut out; what that reads is a result."""
    graph, made = Graph(), dict[Node, Node]()
    gone = {node for cut in cuts for node in cut.nodes}
    for node in view.nodes:
        if node.op == "placeholder":
            made[node] = graph.node_copy(node, made.__getitem__)
    for i, node in enumerate(n for cut in cuts for n in cut.outputs):
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
    for name in bodies(module).keys() & bodies(captured).keys():
        setattr(found, name, getattr(captured, name))
    return found
