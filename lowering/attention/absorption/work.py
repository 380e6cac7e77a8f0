"""What a bias costs to compute for every score, beside reading it from memory.

A bias of 2 bytes that is read from the second-level cache costs a score about as much as ten
operations on an H200 (128 lanes of a processor against its share of 5 TB/s); T5's buckets are twice
as many, a logarithm among them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

from .places import KEY, QUERY

READING = 16
"""Operations that are cheaper than a read, with room for the memory that the tensor would take."""
SLOW = 4
"""What a logarithm, a power or a division of integers counts."""
LARGEST = 256 << 20
"""Bytes: above, a bias is computed whatever that costs, so that it needs no memory."""
_SLOW = {
    "log", "log2", "exp", "exp2", "pow", "sqrt", "rsqrt", "tanh", "erf", "sigmoid", "floordiv",
    "floor_divide", "mod", "remainder", "fmod", "sin", "cos",
}  # fmt: skip


def work(step: Node, axes: Callable[[Node], frozenset[int]]) -> int:
    """Operations for every score below a step: those that neither queries nor keys share.

    Args:
        step: of a program.
        axes: of an input: the canonical dimensions that it varies along.
    """
    varies: dict[Node, frozenset[int]] = {}
    total = 0
    for node in _below(step):
        if node.op == "placeholder":
            varies[node] = axes(node)
            continue
        varies[node] = frozenset[int]().union(*(varies[n] for n in node.all_input_nodes))
        if {QUERY, KEY} <= varies[node]:
            name = str(getattr(node.target, "__name__", node.target)).strip("_")
            total += SLOW if name in _SLOW else 1
    return total


def _below(step: Node) -> list[Node]:
    """A step and all that it depends on, inputs first."""
    found: dict[Node, None] = {}
    stack = [(step, False)]
    while stack:
        node, done = stack.pop()
        if done:
            found[node] = None
        elif node not in found:
            stack.append((node, True))
            stack += [(n, False) for n in node.all_input_nodes]
    return list(found)
