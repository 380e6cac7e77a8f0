"""Structured masks by blocks: which blocks of keys a block of queries sees, and each element.

Every block of queries sees a range of blocks of keys. The ranges are known while compiling and are
a few numbers, so nothing of size Sq x Sk is made, stored or hashed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from fuser.builder import Builder

from .mask import MaskFacts, MaskKind

SIZE = 64
"""Queries and keys in a block: small enough to skip most of what a window leaves out."""
STRUCTURED = (MaskKind.CAUSAL, MaskKind.WINDOW, MaskKind.CHUNKED, MaskKind.PREFIX)


def visited(facts: MaskFacts, rows: int, keys: int) -> float:
    """The share of all scores that lie in blocks which are computed."""
    ranges = _ranges(facts, rows, keys)
    return sum(map(len, ranges)) / (len(ranges) * -(-keys // SIZE))


def table(
    builder: Builder, facts: MaskFacts, rows: int, keys: int, device: torch.device
) -> tuple[Node, Node]:
    """How many blocks of keys each block of queries sees, and which.

    Args:
        builder: where the nodes go.
        facts: a mask of one of the `STRUCTURED` kinds, under which every query keeps a key.
        rows, keys: numbers of queries and keys.
        device: of the table.

    Returns:
        `(1, 1, Q)` and `(1, 1, Q, K)` int32 for Q blocks of queries and K blocks of keys; of the
        latter's last dimension the first so many entries count.
    """
    ranges, across = _ranges(facts, rows, keys), -(-keys // SIZE)
    keywords = {"dtype": torch.int32, "device": device}
    count = builder.call(torch.tensor, [[[len(r) for r in ranges]]], **keywords)
    first = builder.call(torch.tensor, [[[[r.start] for r in ranges]]], **keywords)
    steps = builder.call(torch.arange, across, **keywords)
    return count, builder.call(torch.clamp, builder.call(torch.add, first, steps), max=across - 1)


def keeps(facts: MaskFacts) -> GraphModule:
    """`(b, h, q_idx, kv_idx) -> whether the query sees the key`, all 0-d."""
    graph = Graph()
    i, j = [graph.placeholder(name) for name in ("b", "h", "q_idx", "kv_idx")][2:]

    def call(function: Callable[..., Any], *args: Any) -> Node:
        return graph.call_function(function, args)

    found = call(operator.le, j, i)
    if facts.kind is MaskKind.WINDOW:
        near = call(operator.gt, j, call(operator.sub, i, facts.width))
        found = call(operator.and_, found, near)
    elif facts.kind is MaskKind.CHUNKED:
        chunks = [call(operator.floordiv, x, facts.width) for x in (i, j)]
        found = call(operator.and_, found, call(operator.eq, *chunks))
    elif facts.kind is MaskKind.PREFIX:
        found = call(operator.or_, found, call(operator.lt, j, facts.width))
    graph.output(found)
    return GraphModule({}, graph)


def _ranges(facts: MaskFacts, rows: int, keys: int) -> list[range]:
    """The blocks of keys that each block of queries sees."""
    found: list[range] = []
    for top in range(0, rows, SIZE):
        first, last = 0, min(top + SIZE, rows, keys) - 1
        if facts.kind is MaskKind.WINDOW:
            first = max(0, top - facts.width + 1)
        elif facts.kind is MaskKind.CHUNKED:
            first = top - top % facts.width
        elif facts.kind is MaskKind.PREFIX:
            last = max(last, facts.width - 1)
        found.append(range(first // SIZE, last // SIZE + 1))
    return found
