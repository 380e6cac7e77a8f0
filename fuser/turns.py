"""What eager does only for experts that have tokens, captured as if it were done for all of them.

    hit = mask.sum((1, 2)).nonzero()        begin(hit)
    for e in hit: out += f(e)         =>    turn(hit, 0); out += f(0); turn(hit, 1); ...
                                            over(hit)
    if mask.any(): out += f(x[mask])  =>    begin(mask.any(), True); out += f(x[mask]); over(...)

Whether that is done depends on data. What is captured in its place is true if what eager leaves out
does nothing, and that is not known before all of it is in a graph. So the graph
says with these calls what was supposed. A pattern that proves it takes them into its region; a
graph in which one is left is not compiled. `dynamo_private` puts them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import SymBool, SymInt, Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import has_side_effect

from .torch_private import FakeTensor, fresh_size

_MAX_STEPS = 16
_POSITIONS = ("nonzero", "argwhere", "where")
_COPYING = ("cpu", "to", "long", "int", "detach", "contiguous")
_WRITING = ("scatter_", "scatter_add_", "index_add_")
_COUNTING = {
    "bincount": 0, "one_hot": 0, "histc": 0, "eq": 0, "scatter": 2, "scatter_": 2,
    "scatter_add": 2, "scatter_add_": 2, "index_add": 2, "index_add_": 2,
}  # fmt: skip
"""Where the indices are that an operator counts."""
_CHOOSING = ("topk", "sort", "argsort", "argmax", "max", "one_hot")
UNPROVED = "what is done for experts that have tokens is not proved to be nothing for others"
OVER_ALL = (
    "Let a loop run over all experts, `for e in range(number of experts)`, without conditions."
)


@has_side_effect
def begin(hit: Tensor | SymBool | SymInt, taken: bool | None = None) -> None:
    """Here begins a loop over `hit`, `(n,)` or `(n, 1)`; or, where `taken` is a truth value, what
    is done only if `hit` is that."""
    raise AssertionError(UNPROVED)


@has_side_effect
def turn(hit: Tensor, number: int) -> Tensor:
    """Here begins the turn of one number; returns what the loop is given for it, `()` or `(1,)`."""
    return torch.tensor(number if hit.ndim == 1 else [number])


@has_side_effect
def over(hit: Tensor | SymBool | SymInt, *pairs: Tensor) -> None:
    """Here that has ended as it does by itself. Of each two tensors the first is what stands for
    the second where nothing of it is done."""
    raise AssertionError(UNPROVED)


@has_side_effect
def number(counts: Tensor, expert: int, experts: int, indices: Tensor, *before: int) -> Any:
    """Here Python reads how many of `indices`, all of which are experts, are this one; `before` are
    the numbers of those before it."""
    if not isinstance(counts, FakeTensor):
        return int(counts[expert]) if expert < len(counts) else 0
    most = indices.numel()
    return most - sum(before) if expert == experts - 1 else fresh_size(counts, most)


@has_side_effect
def run(rows: Tensor, start: int, end: int) -> Tensor:
    """Here Python cuts rows at sums of such numbers."""
    if not isinstance(rows, FakeTensor):
        return rows[start:end]
    return rows.sum(0, keepdim=True).expand(end - start, *rows.shape[1:])


@has_side_effect
def piece(rows: Tensor) -> Tensor:
    """Here Python keeps rows in a list, only where there are some."""
    return rows.view_as(rows)


@has_side_effect
def held(*pieces: Tensor) -> Any:
    """Here Python is told how many of them it has kept."""
    if not isinstance(pieces[0], FakeTensor):
        return sum(len(rows) > 0 for rows in pieces)
    return fresh_size(pieces[0], len(pieces), 1)


MARKS: tuple[Any, ...] = (begin, turn, over, number, run, piece, held)


def supposed(module: GraphModule) -> list[Node]:
    """The calls that are left in a graph and in the graphs within."""
    graphs = [m.graph for m in module.modules() if isinstance(m, GraphModule)]
    return [n for graph in graphs for n in graph.nodes if n.target in MARKS]


def turns_of(hit: Any) -> int | None:
    """How many numbers there are that `hit` may hold, `0 … n-1`; None if nothing tells.

    Args:
        hit: the node that a loop runs over, made by `nonzero` of one mask, or by `unique` of
            indices among n.
    """
    node = hit
    for _ in range(_MAX_STEPS):
        source = _source(node)
        if source is None:
            return None
        if name_of(node) in _POSITIONS and isinstance(_example(source), Tensor):
            return bins_of(source) if _example(source).ndim == 1 else None
        if "unique" in name_of(node):
            return _among(source)
        node = source
    return None


@dataclass(frozen=True)
class Counted:
    """How many tokens each expert has.

    Attributes:
        counts: the vector.
        experts: how many there are.
        indices: what is counted.
        summed: Python is told the sums so far.
        short: experts after the last one with tokens are not told.
    """

    counts: Node
    experts: int
    indices: Node
    summed: bool = False
    short: bool = False


def counted_by(node: Any) -> Counted | None:
    """What a vector tells of experts, if it looks like that; proved later."""
    node, summed = _uncopied(node), False
    if name_of(node) == "cumsum" and isinstance(node.args[0], Node):
        plain = [*node.args[1:], *node.kwargs.values()] in ([0], [-1])
        node, summed = (_uncopied(node.args[0]), True) if plain else (node, False)
    example, counts = _example(node), node
    whole = isinstance(example, Tensor) and example.dtype in (torch.int32, torch.int64)
    if not whole or example.ndim != 1:
        return None
    bins = bins_of(node)
    short = bins is None and name_of(node) == "bincount" and node.args[1:] == () == (*node.kwargs,)
    for _ in range(_MAX_STEPS):
        writes = [u for u in node.users if name_of(u) in _WRITING and u.args[:1] == (node,)]
        node = writes[0] if len(writes) == 1 else node
        at = _COUNTING.get(name_of(node))
        if at is not None:
            index = node.args[at] if at < len(node.args) else node.kwargs.get("index")
            if not isinstance(index, Node):
                return None
            experts = _among(index) if short else bins
            return None if experts is None else Counted(counts, experts, index, summed, short)
        source = _source(node)
        if source is None:
            return None
        node = source
    return None


def _among(node: Node) -> int | None:
    """Among how many positions indices were chosen; what they were chosen along is proved later."""
    for _ in range(_MAX_STEPS):
        source = _source(node)
        if source is None:
            return None
        if name_of(node) in _CHOOSING and isinstance(_example(source), Tensor):
            return _width(node, name_of(node), _example(source))
        node = source
    return None


def _source(node: Any) -> Node | None:
    source = node.args[0] if isinstance(node, Node) and node.args else None
    return source if isinstance(source, Node) else None


def _example(node: Node) -> Any:
    return node.meta.get("example_value")


def _uncopied(node: Node) -> Node:
    while name_of(node) in _COPYING and (source := _source(node)) is not None:
        node = source
    return node


def bins_of(node: Node) -> int | None:
    """How many elements a vector has, if all indices are that of one: `bincount` has a length that
    depends on data."""
    node = _uncopied(node)
    example = node.meta.get("example_value")
    if isinstance(example, Tensor) and example.ndim == 1 and isinstance(example.shape[0], int):
        return int(example.shape[0])
    found = node.args[2] if len(node.args) > 2 else node.kwargs.get("minlength")
    return found if name_of(node) == "bincount" and type(found) is int and found > 0 else None


def name_of(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def with_tokens(condition: Any) -> bool | None:
    """What a condition is for an expert with tokens, if it looks like one; proved later."""
    if isinstance(condition.meta.get("example_value"), SymInt):
        return True
    name = str(getattr(condition.target, "__name__", condition.target))
    return {
        "any": True,
        "gt": True,
        "ne": True,
        "ge": True,
        "eq": False,
        "lt": False,
        "le": False,
    }.get(name)


def _width(node: Node, name: str, source: Tensor) -> int | None:
    """Along how many positions an operator has chosen; what it chose along is proved later."""
    size = source.shape[-1] if name != "one_hot" else None
    return int(size) if isinstance(size, int) else None
