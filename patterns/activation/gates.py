"""Whether a program gates one tensor with an activation of another."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch.fx import Node

_PRODUCTS = (operator.mul, torch.mul)


def is_gated(result: Node, nonlinear: Collection[Node], full: Collection[str]) -> bool:
    """Whether an activation is multiplied with a tensor that it was not made from.

    Args:
        result: of the program.
        nonlinear: its activations.
        full: inputs that have every element of the result.
    """
    inputs: dict[Node, frozenset[str]] = {}
    active: dict[Node, bool] = {}
    for node in result.graph.nodes:
        own = {str(node.target)} if node.op == "placeholder" else set[str]()
        inputs[node] = frozenset(own.union(*(inputs[n] for n in node.all_input_nodes)))
        active[node] = node in nonlinear or any(active[n] for n in node.all_input_nodes)
    return any(
        active[a] and (inputs[b] - inputs[a]) & set(full)
        for product in result.graph.nodes
        for a, b in _factors(product)
    )


def _factors(node: Node) -> list[tuple[Node, Node]]:
    """The factors of a product of tensors, in both orders."""
    factors = node.args[-2:] if node.target is torch.addcmul else node.args
    if node.target not in (*_PRODUCTS, torch.addcmul) or len(factors) != 2:
        return []
    a, b = factors
    return [(a, b), (b, a)] if isinstance(a, Node) and isinstance(b, Node) else []
