"""Indices of experts: which of them are distinct for each token, and which certainly name one."""

from __future__ import annotations

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView

from ..cuts import cut_of
from .copies import COPIES

MAX_DEPTH = 64
WHOLE = ("to", "long", "int")
"""Casts between integers, where both sides are."""


def distinct(view: GraphView, index: Node, dims: Dims, along: Dim) -> bool:
    """Whether no token has an index twice along some axes.

    So are positions that `topk` and `sort` give, in any order, and a part of them.
    """
    if not leaves((along,)):
        return True
    node, dims, along = index, resolve(dims), leaves((along,))
    for _ in range(MAX_DEPTH):
        if view.is_written(node):
            return False
        found = _rearranged(view, node, dims, along)
        if found is None:
            break
        node, dims, along = found
    at = _position(dims, along)
    return at is not None and _is_order(view, node, at, len(dims))


def _rearranged(
    view: GraphView, node: Node, dims: Dims, along: Dim
) -> tuple[Node, Dims, Dim] | None:
    """Indices of which these are some, in another order, or another arrangement."""
    op = view.op(node)
    if op.inplace:
        return None
    if op.kind is Kind.VIEW:
        try:
            source, pulled = pull_view(op, node, dims)
        except Unproven:
            return None
        return source, resolve(pulled), leaves((along,))
    if op.name in (*COPIES, "flip") or _is_whole(op, node):
        return op.args["input"], dims, along
    cut = cut_of(view, node)
    if cut is not None:
        return _taken(cut.source, cut.dim, dims, along)
    at = _position(dims, along)
    ordered = found_by(view, node, 0)
    if ordered is not None and ordered.name == "sort" and _dim(ordered, len(dims)) == at:
        return ordered.args["input"], dims, along
    if at is not None and _dim(op, len(dims)) == at and reads_as_told(view, op):
        if distinct(view, op.args["index"], dims, along):
            return _taken(op.args["input"], at, dims, along)
    return None


def _taken(source: Node, at: int, dims: Dims, along: Dim) -> tuple[Node, Dims, Dim] | None:
    """The tensor of which a part is taken along one of its dimensions."""
    if value(source).ndim != len(dims):
        return None
    whole = fresh((value(source).shape[at],), "whole")[0]
    own = leaves((dims[at],)) == along
    if not own and set(leaves((dims[at],))) & set(along):
        return None
    return source, (*dims[:at], whole, *dims[at + 1 :]), whole if own else along


def _position(dims: Dims, along: Dim) -> int | None:
    at = [i for i, dim in enumerate(dims) if set(leaves((dim,))) == set(along)]
    return at[0] if len(at) == 1 else None


def _dim(op: Op, rank: int) -> int | None:
    dim = op.args.get("dim", -1)
    return dim % rank if type(dim) is int and rank else None


def _is_whole(op: Op, node: Node) -> bool:
    source, whole = op.args.get("input"), (torch.int32, torch.int64)
    if not is_tensor(source):
        return False
    return op.name in WHOLE and value(source).dtype in whole and value(node).dtype in whole


def _is_order(view: GraphView, node: Node, dim: int, rank: int) -> bool:
    """Whether a tensor holds positions along a dimension, each once at the most."""
    op = view.op(node)
    found = op if op.name == "argsort" else found_by(view, node)
    return found is not None and found.name in ("topk", "sort", "argsort") and (
        _dim(found, rank) == dim
    )  # fmt: skip


def found_by(view: GraphView, node: Node, which: int = 1) -> Op | None:
    """The operator that gives positions (1) beside values (0), of which a node is one."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or len(node.args) < 2 or is_tensor(source):
        return None
    part = (getattr(node.target, "__name__", str(node.target)), node.args[1])
    named = ("getattr", ("values", "indices")[which])
    return view.op(source) if part in (("getitem", which), named) else None


def are_experts(view: GraphView, node: Node, count: int) -> bool:
    """Whether every element of a tensor is the number of one of so many experts."""
    return experts_among(view, node) == count


def experts_among(view: GraphView, node: Node) -> int | None:
    """Of how many experts the elements of a tensor are numbers: positions among as many scores."""
    for _ in range(MAX_DEPTH):
        if view.is_written(node):
            return None
        op = view.op(node)
        ordered = found_by(view, node, 0)
        if op.kind is Kind.CAT or op.name == "stack":
            tensors = op.args.get("tensors")
            listed = tensors if isinstance(tensors, (tuple, list)) else ()
            counts = {experts_among(view, n) for n in listed}
            return counts.pop() if len(counts) == 1 else None
        cut = cut_of(view, node)
        if ordered is not None and ordered.name == "sort":
            node = ordered.args["input"]
        elif cut is not None:
            node = cut.source
        elif op.inplace or not _holds_some(op, node):
            break
        else:
            node = op.args["input"]
    op = view.op(node)
    found = op if op.name in ("argmax", "argsort") else found_by(view, node)
    if found is None or found.name not in ("topk", "max", "argmax", "sort", "argsort"):
        return None
    scores, dim = found.args.get("input"), found.args.get("dim", -1)
    if not is_tensor(scores) or type(dim) is not int:
        return None
    count = value(scores).shape[dim]
    return count if isinstance(count, int) else None


def _holds_some(op: Op, node: Node) -> bool:
    """Whether all elements of a node are elements of its input."""
    if op.kind in (Kind.VIEW, Kind.SLICE) or op.name in (*COPIES, "flip", "select"):
        return True
    return op.name in ("gather", "index_select", "take_along_dim") or _is_whole(op, node)


def reads_as_told(view: GraphView, op: Op) -> bool:
    """Whether an operator reads a tensor at the positions that it is given.

    Positions beyond the last one are an error of `gather`'s; `take_along_dim` counts on from the
    first one.
    """
    index, source, dim = op.args.get("index"), op.args.get("input"), op.args.get("dim")
    if not (is_tensor(index) and is_tensor(source)) or type(dim) is not int:
        return False
    if op.name == "gather":
        return True
    known = experts_among(view, index) if op.name == "take_along_dim" else None
    return known is not None and known == value(source).shape[dim]
