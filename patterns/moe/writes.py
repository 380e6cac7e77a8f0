"""An accumulator into which one expert after the other writes the rows of its tokens.

out.index_add_(0, idx, rows)            out = out.index_add(0, idx, rows)
out[idx] += rows                        out[mask] += rows
out[idx] = rows                         out[mask] = rows
out.scatter_add_(0, idx[:, None].expand(...), rows)

Statements are read in the order in which they run, and as what they leave behind: whoever reads the
accumulator between two of them is another user, whom the engine's check finds.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView

from .copies import arranged
from .restoring import lined

_ZEROS = {"zeros", "zeros_like", "new_zeros"}
_FILLED = {*_ZEROS, "empty", "empty_like", "new_empty", "full", "full_like", "new_full", "clone"}
_ADDING = {"index_add", "index_put"}


@dataclass(frozen=True)
class Write:
    """Rows that go into an accumulator.

    Attributes:
        node: the operator that writes.
        index: where to, one part for each dimension, the last ones may be missing.
        rows: what is written.
        adds: to what is there already; else it is replaced.
        repeats: an index that is there twice counts twice.
        passed: operators that belong to the statement.
    """

    node: Node
    index: tuple[Any, ...]
    rows: Node
    adds: bool
    repeats: bool
    passed: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Accumulator:
    """A tensor and everything that is written to it.

    Attributes:
        start: what it is before.
        output: the node that later readers read.
        writes: in order.
    """

    start: Node
    output: Node
    writes: tuple[Write, ...]


def accumulators(view: GraphView) -> Iterator[Accumulator]:
    """All of a graph that are written to twice at least, by tensors of positions."""
    assigned: dict[Node, list[Write]] = {}
    for node in view.nodes:
        if node.target is operator.setitem and is_tensor(node.args[0]):
            target, index, source = node.args
            if isinstance(target, Node) and isinstance(source, Node) and _is_picked(index):
                assigned.setdefault(target, []).append(_assigned(view, node, target, index, source))
            continue
        write = _index_add(view, node)
        if write is None:
            continue
        op, target = view.op(node), view.op(node).args["input"]
        if op.inplace and not node.users and _index_add(view, target) is None:
            assigned.setdefault(target, []).append(write)
        elif not _is_continued(view, node):
            yield from _chained(view, node)
    for target, writes in assigned.items():
        if len(writes) > 1:
            yield Accumulator(target, target, tuple(writes))


def _chained(view: GraphView, last: Node) -> Iterator[Accumulator]:
    """Additions, each to the result of the one before."""
    writes: list[Write] = []
    node = last
    while (found := _index_add(view, node)) is not None:
        writes.append(found)
        node = view.op(node).args["input"]
    if len(writes) > 1:
        yield Accumulator(node, last, tuple(reversed(writes)))


def _index_add(view: GraphView, node: Node) -> Write | None:
    """`index_add(0, ...)` or `index_copy(0, ...)`, or `scatter_add` with an index that is the same
    for all features."""
    op = view.op(node)
    reduces = op.name == "scatter_reduce" and op.args.get("reduce") == "sum"
    scatters = op.name == "scatter_add" or (reduces and op.args.get("include_self", True) is True)
    copies = op.name == "index_copy"
    if not (scatters or copies) and (op.name != "index_add" or op.args.get("alpha", 1) != 1):
        return None
    names = ("input", "index", "src" if scatters else "source")
    source, index, rows = (op.args.get(name) for name in names)
    if not (is_tensor(source) and is_tensor(index) and is_tensor(rows)):
        return None
    dim, passed = op.args.get("dim"), set[Node]()
    if type(dim) is not int or dim % value(source).ndim != 0:
        return None
    if scatters:
        same = value(index).shape == value(rows).shape
        same &= value(source).shape[1:] == value(rows).shape[1:]
        found = lined(view, index) if same else None
        if found is None:
            return None
        passed, index = arranged(view, found), found
    return Write(node, (index,), rows, not copies, not copies, (*passed,))


def _is_continued(view: GraphView, node: Node) -> bool:
    added = [user for user in node.users if view.op(user).args.get("input") is node]
    return any(_index_add(view, user) is not None for user in added)


def _is_picked(index: Any) -> bool:
    """Whether an index has a tensor in it."""
    return any(is_tensor(part) for part in _parts(index))


def _parts(index: Any) -> tuple[Any, ...]:
    return tuple(index) if isinstance(index, (tuple, list)) else (index,)


def _assigned(view: GraphView, node: Node, target: Node, index: Any, source: Node) -> Write:
    """`target[index] = source`, where source may be `target[index] + rows`."""
    parts = _parts(index)
    op = view.op(source)
    if op.name == "add" and op.args.get("alpha", 1) == 1:
        inputs: list[Any] = [op.args.get("input"), op.args.get("other")]
        reads = [n for n in inputs if _reads(view, n, target, parts)]
        others = [n for n in inputs if n not in reads]
        if len(reads) == 1 and is_tensor(others[0]) and (not op.inplace or reads[0] is inputs[0]):
            passed = (reads[0], source)
            return Write(node, parts, others[0], adds=True, repeats=False, passed=passed)
    return Write(node, parts, source, adds=False, repeats=False)


def _reads(view: GraphView, node: Any, target: Node, parts: tuple[Any, ...]) -> bool:
    """Whether a node is `target[parts]`."""
    if not is_tensor(node):
        return False
    op = view.op(node)
    same = op.kind is Kind.SLICE and op.name == "getitem" and op.args["input"] is target
    return same and _parts(op.args["index"]) == parts


def made_of_zeros(view: GraphView, node: Node) -> bool:
    """Whether an accumulator begins as zeros, or as a view of zeros."""
    return _name(view, node) in _ZEROS


def is_made_here(view: GraphView, node: Node) -> bool:
    """Whether a tensor was only made to be written to."""
    return _name(view, node) in _FILLED


def made_by(view: GraphView, node: Node) -> set[Node]:
    """The nodes that make an accumulator, and that nobody else reads."""
    found = {node}
    op = view.op(node)
    while op.kind is Kind.VIEW and len(op.args["input"].users) == 1:
        node = op.args["input"]
        found.add(node)
        op = view.op(node)
    return found


def _name(view: GraphView, node: Node) -> str:
    op = view.op(node)
    while op.kind is Kind.VIEW:
        node = op.args["input"]
        op = view.op(node)
    return str(getattr(node.target, "__name__", node.target))
