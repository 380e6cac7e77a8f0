"""How many tokens each expert has, as Python's numbers.

counts = bincount(indices, minlength=E).tolist()
if counts[e] == 0: continue

`fuser.turns.number` marks where such a number was read while a loop was captured. It is not known
before the program runs, and gone where all that reads it is in the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node

from fuser.graph.axes import Size
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr
from fuser.turns import name_of, number

from .choices import experts_among
from .copies import CASTS, COPIES
from .order import Order
from .selection import sizes_of

_COUNTING = {
    "bincount", "sum", "one_hot", "eq", "scatter", "scatter_add", "index_add", "arange", "cumsum",
}  # fmt: skip
_PASSED = {*_COUNTING, *COPIES, *CASTS, "int", "long"}


def numbers_of(view: GraphView, indices: Node) -> list[list[Any]]:
    """How many of the choices each expert is, as expressions; a list for each time that Python read
    them."""
    read = dict[Node, list[Node]]()
    for node in view.nodes:
        if node.target is number and node.args[1] == 0:
            read[node] = [node]
        elif node.target is number and isinstance(node.args[4], Node):
            read.setdefault(node.args[4], []).append(node)
    found = list[list[Any]]()
    for nodes in read.values():
        if _count(view, nodes, indices):
            known = [to_expr(value(node)) for node in nodes]
            found.append([*known, to_expr(value(indices).numel()) - sum(known)])
    return found


def _count(view: GraphView, read: Sequence[Node], indices: Node) -> bool:
    """Whether numbers that were read are how many of the choices each expert is; that of the last
    one is what is left, and known by that."""
    counts, _, experts, index = read[0].args[:4]
    assert isinstance(counts, Node)
    assert isinstance(index, Node)
    assert isinstance(experts, int)
    each = [(counts, e, experts, index) for e in range(experts - 1)]
    whole = to_expr(value(index).numel()) == to_expr(value(indices).numel())
    known = [node.args[:4] for node in read] == each and whole
    return known and holds_counts(view, counts, indices, experts, short=True)


def holds_counts(
    view: GraphView, node: Node, indices: Node, experts: int, *, short: bool = False
) -> bool:
    """Whether a vector has how many of the choices each expert is, which all of them are; where it
    may be `short`, perhaps not of experts after the last one that is chosen."""
    among = value(node).ndim == 1 and experts_among(view, indices) == experts
    return among and Order(None, indices, ()).holds_counts(view, node, experts, short=short)


def with_numbers(
    view: GraphView, nodes: set[Node], indices: Node, operands: Sequence[Node], most: Size
) -> set[Node]:
    """A region with the numbers that nothing else reads, and with what counted them."""
    read = numbers_of(view, indices)
    found, behind = set(nodes), set[Node]()
    for node in reversed(view.nodes) if read else ():
        if _is_certain(node, read):
            found.add(node)
            continue
        size = isinstance(value(node), (torch.SymInt, torch.SymBool)) and node.op != "placeholder"
        told = node in behind or (not node.users and not view.op(node).inplace)
        counts = told and node not in operands and _only_counts(view, node)
        if node in found or not (size or counts):
            continue
        asserted = sizes_of(view, {node}, most)
        if all(user in found or user in asserted for user in node.users):
            found |= {node, *asserted}
            behind.update(node.all_input_nodes if counts or node.target is number else ())
    return found


def _is_certain(node: Node, read: Sequence[Sequence[Any]]) -> bool:
    """Whether it is asserted that a number is no less than zero."""
    if not name_of(node).startswith("_assert_scalar") or not isinstance(node.args[0], Node):
        return False
    told = value(node.args[0])
    known: Any = to_expr(told) if isinstance(told, torch.SymBool) else None
    kind = getattr(known, "func", None)
    if kind not in (sympy.Le, sympy.Ge):
        return False
    more = known.rhs - known.lhs if kind is sympy.Le else known.lhs - known.rhs
    return any(sympy.expand(more - number) == 0 for numbers in read for number in numbers)


def _only_counts(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    return is_tensor(node) and (
        op.kind is Kind.VIEW or op.name in _PASSED or name_of(node) in ("bincount", "cpu")
    )
