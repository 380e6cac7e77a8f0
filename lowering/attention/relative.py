"""A bias that depends on positions only through j - i: S numbers a head instead of S x S.

With the queries in reversed order, i' = Sq - 1 - i, the bias of a query and a key depends on
i' + j alone: it is a window that slides over one row of Sq + Sk - 1 numbers, which is a view. The
kernel reads a few KiB that stay in the cache, and T5's bias, ALiBi or a mask by distance is never
made whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import Unproven, leaves, size_of
from fuser.graph.dependence import Arguments, DependenceReader
from fuser.graph.fold import Folder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.swallowed import swallow

from .affine import Free, Keep, Term
from .evaluate import parts, varies_over

FEWEST_KEYS = 4
"""Keys for each feature from which turning q and the result around costs less than a whole bias."""


def is_relative(call: Call, items: Iterable[Term | Keep], folder: Folder) -> bool:
    """Whether a bias is large enough and no part of it tells (i, j) from (i + 1, j + 1)."""
    pieces = [part for item in items for part in parts(item)]
    if not _is_large(call, pieces):
        return False
    axes = [leaves((call.operands[name].target[2],)) for name in ("q0", "k0")]
    if any(len(a) != 1 for a in axes):
        return False
    reader = DependenceReader(folder)
    i, j = (reader.symbol(a[0]) for a in axes)
    try:
        found = [_arguments(call, reader, piece) for piece in pieces]
    except Exception as error:  # what cannot be followed is merely no special case
        swallow(error)
        return False
    return all(is_along_diagonals(part, i, j) for part in found)


def is_along_diagonals(arguments: Arguments, i: sympy.Symbol, j: sympy.Symbol) -> bool:
    """Whether what an element is made from is the same at (i, j) and at (i + 1, j + 1)."""
    step = {i: i + 1, j: j + 1}
    return all(sympy.expand(e.xreplace(step) - e) == 0 for e in arguments)


def _is_large(call: Call, pieces: list[Free]) -> bool:
    """Whether a bias is as large as all scores, and both sizes are constants."""
    features, keys = (_size(call, "q0", 3), _size(call, "k0", 2))
    if not all(isinstance(n, int) for n in (features, keys, _size(call, "q0", 2))):
        return False
    whole = all(any(varies_over(call, piece, dim) for piece in pieces) for dim in (2, 3))
    return whole and keys >= FEWEST_KEYS * features


def _size(call: Call, name: str, dim: int) -> Any:
    return size_of(leaves((call.operands[name].target[dim],)))


def _arguments(call: Call, reader: DependenceReader, node: Free) -> Arguments:
    if not isinstance(node, Node):
        return frozenset()
    if node.op != "placeholder":
        inputs = [_arguments(call, reader, n) for n in node.all_input_nodes]
        return frozenset[sympy.Expr]().union(*inputs)
    operand = call.operands[str(node.target)]
    if not operand.target:
        return frozenset()
    fixed = dict(operand.fixed)
    if set(leaves(operand.dims)) - set(fixed) - set(leaves(operand.target)):
        raise Unproven("a tensor has an axis that its place does not have")
    return reader.arguments(operand.node, operand.dims, fixed)


def reversed_rows(builder: Builder, bias: Node) -> Node:
    """A relative bias for queries in reversed order, as a view of Sq + Sk - 1 numbers.

    Args:
        builder: where the nodes go.
        bias: `(B, H, Sq, Sk)`, each of B and H possibly one; only Sq + Sk - 1 elements are read.

    Returns:
        `(B, H, Sq, Sk)`, of which element `(i', j)` is `bias[Sq - 1 - i', j]`.
    """
    rows, keys = value(bias).shape[2:]
    row, key = edge_positions(builder, rows, keys, value(bias).device)
    edge = builder.call(torch.ops.aten.index.Tensor, bias, [None, None, row, key])
    batch, heads, length = value(edge).shape
    # unfold, in words that make Inductor compute the row before it is read
    strides = (heads * length, length, 1, 1)
    return builder.call(torch.as_strided, edge, (batch, heads, rows, keys), strides)


def edge_positions(
    builder: Builder, rows: Any, keys: Any, device: torch.device
) -> tuple[Node, Node]:
    """Queries and keys of one score on each of `rows + keys - 1` diagonals: along the edge, from
    the first key of the last query to the last key of the first one."""
    steps = builder.call(torch.arange, rows + keys - 1, device=device)
    later = builder.call(torch.sub, steps, rows - 1)
    is_later = builder.call(torch.gt, later, 0)
    # not clamp: Inductor reasons about it, and fails where the bias divides positions
    row = builder.call(torch.where, is_later, 0, builder.call(torch.neg, later))
    return row, builder.call(torch.where, is_later, later, 0)
