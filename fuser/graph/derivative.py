"""What the gradients of a program are computed from: less than what the program is, as a rule.

    y = x · cos - z · sin        gradients of x and z read cos and sin, and neither x nor z

So an operator need not keep x for its backward, and x may be overwritten once y is there.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Node

from .program import Program

_SUMS: tuple[Any, ...] = (
    torch.add, operator.add, torch.sub, operator.sub, torch.neg, operator.neg, "to",
)  # fmt: skip
_PRODUCTS: tuple[Any, ...] = (torch.mul, operator.mul)
_QUOTIENTS: tuple[Any, ...] = (torch.div, operator.truediv)
_CHOICES: dict[Any, int] = {torch.where: 0, torch.masked_fill: 1}
"""With the position of what tells which is chosen."""


def read_by_gradient(program: Program, wanted: Collection[str]) -> frozenset[str]:
    """Inputs that the gradients of the `wanted` ones are computed from, or may be.

    Of sums, products, quotients, casts and choices that is known; of any other operator that
    something wanted goes through, all that it reads counts.
    """
    made_of, differ, read = dict[Node, frozenset[str]](), set[Node](), set[str]()
    for node in program.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "placeholder":
            made_of[node] = frozenset((str(node.target),))
        else:
            made_of[node] = frozenset[str]().union(*(made_of[n] for n in sources))
        if not (differ.intersection(sources) or node.target in wanted) or node.op == "output":
            continue
        differ.add(node)
        read.update(*(made_of[n] for n in _read(node, differ)))
    return frozenset(read)


def _read(node: Node, differ: Collection[Node]) -> list[Node]:
    """Of what an operator reads, that of which values are in its derivative."""
    if any(isinstance(value, Node) for value in node.kwargs.values()):
        return node.all_input_nodes
    if node.target in _SUMS or node.op == "placeholder":
        return []
    if node.target in _CHOICES and len(node.args) == 3:
        chosen = node.args[_CHOICES[node.target]]
        return [chosen] if isinstance(chosen, Node) else []
    if node.target in (*_PRODUCTS, *_QUOTIENTS) and len(node.args) == 2 and not node.kwargs:
        first, second = node.args
        if node.target in _QUOTIENTS and second in differ:
            return node.all_input_nodes
        found = [*([second] if first in differ else []), *([first] if second in differ else [])]
        return [n for n in found if isinstance(n, Node)]
    return node.all_input_nodes
