"""Producers that read a tensor at an index: slices, look-ups, triangles."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import sympy
import torch
import torch.nn.functional as F
from torch.fx import Node

from fuser.graph.axes import Unproven, same_size
from fuser.graph.index import full_index
from fuser.graph.index_rules import is_one, size_expr
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.positional import TRUE, not_negative
from fuser.torch_private import to_expr

from .places import Index, Place, aligned

if TYPE_CHECKING:
    from .follow import Follower


def through(follower: Follower, op: Op, node: Node, index: Index) -> Node:
    """A producer that is neither pointwise nor a view.

    Raises:
        Unproven: there is no rule for it.
    """
    if op.kind is Kind.SLICE and op.name == "getitem":
        return follower.visit(op.args["input"], _getitem(follower, op, node, index), node)
    name = str(getattr(node.target, "__name__", node.target))
    if node.target is F.embedding:
        return _embedding(follower, node, index)
    known = node.op == "call_method" or getattr(torch, name, None) is node.target
    if known and name == "index_select":
        return _index_select(follower, node, index)
    if known and name in ("tril", "triu"):
        return _triangle(follower, node, index, lower=name == "tril")
    raise Unproven(f"no rule for `{node.name}`")


def _getitem(follower: Follower, op: Op, node: Node, index: Index) -> Index:
    source = op.args["input"]
    sizes = list(value(source).shape)
    parts = full_index(op.args["index"], len(sizes))
    gathered = [i for i, part in enumerate(parts) if is_tensor(part)]
    if gathered and gathered != list(range(gathered[0], gathered[-1] + 1)):
        raise Unproven("gathers with something between them")
    if gathered and any(isinstance(p, int) or _is_size(p) for p in parts):
        raise Unproven("a gather next to a single position")
    at: list[Place] = []
    cursor = 0
    for place, part in enumerate(parts):
        if part is None:
            cursor += 1
        elif isinstance(part, slice):
            at.append(_sliced(follower, part, sizes[len(at)], node.meta, cursor, index))
            cursor += 1
        elif not is_tensor(part):
            at.append(_single(follower, part, sizes[len(at)]))
        elif place == gathered[0]:
            tensors = [parts[i] for i in gathered]
            rank = max(value(t).ndim for t in tensors)
            span = slice(cursor, cursor + rank)
            shape = value(node).shape[span]
            for tensor in tensors:
                own = aligned(index[span], shape, value(tensor).shape)
                at.append(follower.index_step(tensor, own, sizes[len(at)], node))
            cursor += rank
    if cursor != len(index) or len(at) != len(sizes):
        raise Unproven("an index of unclear rank")
    return tuple(at)


def _is_size(part: Any) -> bool:
    return isinstance(part, Node) and not is_tensor(part)


def _sliced(
    follower: Follower, part: slice, size: Any, meta: dict[str, Any], cursor: int, index: Index
) -> Place:
    place = index[cursor]
    start = follower.positions.start(part, size)
    whole = same_size(to_expr(size), to_expr(meta["example_value"].shape[cursor]))
    if isinstance(place, tuple) and not whole:
        # the same index, of a dimension that is longer than its axes
        place = follower.step_of(place)
    return follower.shifted(place, start)


def _single(follower: Follower, part: Any, size: Any) -> Place:
    start = follower.positions.start(slice(part, None), size)
    return () if is_one(size) else follower.steps.integer(start)


def _embedding(follower: Follower, node: Node, index: Index) -> Node:
    names = ("input", "weight", "padding_idx", "max_norm")
    arguments = dict(zip(names, node.args, strict=False)) | node.kwargs
    table = arguments.get("weight")
    where = arguments.get("input")
    if not is_tensor(table) or not is_tensor(where):
        raise Unproven("an embedding of an unusual form")
    if arguments.get("max_norm") is not None:
        raise Unproven("an embedding that writes to its table")
    rows = value(table).shape[0]
    row = follower.index_step(where, index[:-1], rows, node, wraps=False)
    return follower.visit(table, (row, index[-1]), node)


def _index_select(follower: Follower, node: Node, index: Index) -> Node:
    arguments: dict[str, Any] = dict(zip(("input", "dim", "index"), node.args, strict=False))
    arguments |= node.kwargs
    source, where = arguments["input"], arguments["index"]
    dim = arguments["dim"] % value(source).ndim
    own = (index[dim],) if value(where).ndim else ()
    row = follower.index_step(where, own, value(source).shape[dim], node, wraps=False)
    return follower.visit(source, (*index[:dim], row, *index[dim + 1 :]), node)


def _triangle(follower: Follower, node: Node, index: Index, *, lower: bool) -> Node:
    arguments: dict[str, Any] = dict(zip(("input", "diagonal"), node.args, strict=False))
    arguments |= node.kwargs
    row, column = (follower.expression(place) for place in index[-2:])
    if row is None or column is None or set(arguments) - {"input", "diagonal"}:
        raise Unproven("a triangle of what is read at an index from data")
    over: Any = row + size_expr(arguments.get("diagonal", 0)) - column
    kept = not_negative(sympy.expand(over if lower else -over), follower.places.sizes)
    inside = follower.visit(arguments["input"], index, node)
    if kept == TRUE:
        return inside
    keep = follower.steps.condition(kept)
    if value(node).dtype is torch.bool:
        return follower.scratch.call(operator.and_, keep, inside)
    return follower.scratch.call(torch.where, keep, inside, 0)
