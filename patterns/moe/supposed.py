"""Parts of a graph that eager runs only for experts with tokens.

`fuser.turns` marks where they were captured. Here stands what is asked of all of them: where they
are, what tells of their experts, that nothing else happens there, and that what is read afterwards
is the same where they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from fuser.graph.effects import draws
from fuser.graph.ops import Kind, value
from fuser.graph.view import GraphView
from fuser.pattern import Match
from fuser.torch_private import to_expr
from fuser.turns import MARKS, begin, over, turn

from .selection import sizes_of
from .space import require

LEFT = "what is read later is another where an expert has no tokens"
_SIZES = (torch.SymInt, torch.SymBool, torch.Size, int)
UNKNOWN = "the experts that a loop runs over may be others than those that tokens chose"


@dataclass(frozen=True)
class Part:
    """Where such a part stands in a graph.

    Attributes:
        hit: what a loop runs over, or the condition of a branch.
        marks: all that tells of it.
        first, last: positions of its begin and its end.
        taken: what the condition is for an expert with tokens; None for a part.
        turns: of a loop the positions at which turns begin; number i is that of expert i.
        left: tensors and sizes before it, each with what later readers read in its place.
    """

    hit: Node
    marks: tuple[Node, ...]
    first: int
    last: int
    taken: bool | None = None
    turns: tuple[int, ...] = ()
    left: tuple[tuple[Any, Any], ...] = ()


def parts(view: GraphView) -> list[Part]:
    marks = [node for node in view.nodes if node.target in MARKS]
    found: list[Part] = []
    for at, start in enumerate(marks):
        if start.target is not begin:
            continue
        own = [start]
        for mark in (m for m in marks[at + 1 :] if m.args[0] is start.args[0]):
            own.append(mark)
            if mark.target is not turn:
                break
        numbers = [m.args[1] for m in own if m.target is turn]
        ends = own[-1].target is over and numbers == list(range(len(numbers)))
        hit, taken = start.args[0], start.args[1] if len(start.args) > 1 else None
        if not (ends and isinstance(hit, Node) and isinstance(taken, (bool, type(None)))):
            continue
        turns = tuple(view.order[m] for m in own if m.target is turn)
        first, last = view.order[start], view.order[own[-1]]
        pairs = own[-1].args[1:]
        left = tuple(zip(pairs[::2], pairs[1::2], strict=True))
        found.append(Part(hit, tuple(own), first, last, taken, turns, left))
    return found


def tells_rows(known: Any, rows: Any, taken: bool | None) -> bool:
    """Whether a condition on a size is what it is wherever there are rows, and where there are none
    the other: it compares `a · rows + b` with zero."""
    relation: Any = known
    relational = isinstance(known, sympy.core.relational.Relational)
    compared = relation.lhs - relation.rhs if relational else known
    kind = relation.func if relational else sympy.Ne
    symbols = list(rows.free_symbols)
    if not symbols:
        return False
    by = sympy.expand(compared).coeff(symbols[0]) / sympy.expand(rows).coeff(symbols[0])
    beside = sympy.expand(compared - by * rows)
    if not (by.is_Integer and beside.is_Integer):
        return False
    told = [bool(kind(by * count + beside, 0)) for count in range(3)]  # and so on
    return told == [not taken, bool(taken), bool(taken)]


def is_left(rows: Any, before: Any, now: Any) -> bool:
    """Whether what is read after a part is the same where there are no rows, without it."""
    found = [value(one) if isinstance(one, Node) else one for one in (before, now)]
    if all(isinstance(one, torch.Tensor) for one in found):
        return _are_empty(rows, *found)
    if not all(isinstance(one, (int, torch.SymInt)) for one in found):
        return False
    sizes = [to_expr(one) for one in found]
    more, symbols = sympy.expand(sizes[1] - sizes[0]), list(rows.free_symbols)
    if not symbols:
        return False
    by = more.coeff(symbols[0]) / sympy.expand(rows).coeff(symbols[0])
    return sympy.expand(more - by * rows) == 0


def _are_empty(rows: Any, one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = (one.dtype, one.device, one.ndim) == (other.dtype, other.device, other.ndim)
    sizes = [[to_expr(size) for size in t.shape] for t in (one, other)]
    return alike and sizes[0] == sizes[1] and sizes[0][:1] == [rows]


def sizes_behind(condition: Node) -> set[Node]:
    """A condition on a size, and what it is computed from."""
    found, pending = set[Node](), [condition]
    while pending:
        node = pending.pop()
        if node not in found and isinstance(value(node), (torch.SymInt, torch.SymBool)):
            found.add(node)
            pending += node.all_input_nodes
    return {node for node in found if node.op != "placeholder"}


def alone(view: GraphView, chain: set[Node], part: Part, most: int) -> set[Node]:
    """The nodes of a chain that nobody else reads, and their sizes."""
    sizes = sizes_of(view, chain, most)
    own, before = {*chain, *sizes}, 0
    while before != len(own):
        before = len(own)
        own = {n for n in own if all(user in own or user in part.marks for user in n.users)}
    return own


def with_idle(view: GraphView, match: Match, part: Part, nodes: set[Node]) -> set[Node]:
    """A region, and what only it reads within the part.

    Raises:
        Declined: something else happens there.
    """
    operands = {o.node for call in match.calls for o in call.operands.values()}
    inside = view.nodes[part.first : part.last]
    for node in reversed(inside):
        if node in nodes or node.op in ("placeholder", "get_attr"):
            continue
        if isinstance(value(node), _SIZES) and node.target not in MARKS:
            continue  # what is computed of numbers, whose own marks are left where others read it
        require(_is_pure(view, node), "a turn does more than adding the rows of an expert", node)
        later = any(user not in nodes and view.order[user] > part.last for user in node.users)
        require(not later, "what a turn computes is read after the loop", node)
        if node not in operands and all(user in nodes for user in node.users):
            nodes.add(node)
    return nodes


def _is_pure(view: GraphView, node: Node) -> bool:
    op = view.op(node)
    known = op.kind is not Kind.OTHER or node.target == "item"
    return known and not op.inplace and not draws(node, op)
