"""Dynamo's graphs of a case, and how many attentions they hold by a count of its own.

The count knows nothing of fuser's matcher: an attention is a `scaled_dot_product_attention` node,
or a softmax over the last axis that comes from a contraction and reaches another one through
casts, dropout, views and slices alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .case import ModelCase

_CONTRACTIONS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
_TRANSPARENT = frozenset(
    "to float type type_as half bfloat16 dropout view reshape getitem contiguous clone "
    "expand flatten unflatten squeeze unsqueeze".split()
)


def captures(
    case: ModelCase,
    implementation: str,
    training: bool = False,
    dynamic: bool | None = None,
) -> list[GraphModule]:
    """Every graph that Dynamo hands to a backend in one forward, in the order they ran.

    Args:
        case: The model.
        implementation: One of `case.implementations`.
        training: Capture in train mode with gradients on, instead of eval mode under `no_grad`.
        dynamic: As in `torch.compile`.
    """
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    model = case.build(implementation).train(training)
    torch._dynamo.reset()
    try:
        with torch.set_grad_enabled(training):
            torch.compile(model, backend=backend, dynamic=dynamic)(**case.inputs())
    finally:
        torch._dynamo.reset()
    return graphs


def attentions(graphs: list[GraphModule]) -> int:
    """The number of attentions in all graphs together."""
    return sum(_is_attention(node) for graph in graphs for node in graph.graph.nodes)


def operator_name(node: Node) -> str:
    """The bare name of what a node calls: `matmul`, `softmax`, `to`."""
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", str(node.target))


def _is_attention(node: Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = operator_name(node)
    if name == "scaled_dot_product_attention":
        return True
    return name == "softmax" and _over_last_axis(node) and _contracted(node) and _has_scores(node)


def _over_last_axis(node: Node) -> bool:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return axis in (-1, node.meta["example_value"].dim() - 1)


def _contracted(node: Node) -> bool:
    """A contraction uses the probabilities."""
    todo = list(node.users)
    while todo:
        user = todo.pop()
        name = operator_name(user)
        if name in _CONTRACTIONS:
            return True
        if name in _TRANSPARENT:
            todo += user.users
    return False


def _has_scores(node: Node) -> bool:
    """A contraction is among the ancestors."""
    seen: set[Node] = set()
    todo = [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if operator_name(current) in _CONTRACTIONS:
            return True
        todo += current.all_input_nodes
    return False
