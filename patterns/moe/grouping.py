"""Experts in groups, of which the best are looked at: DeepSeek's group-limited routing.

best   = top-k of the groups' scores, each its largest score, or the sum of its largest two
masked = scores, with a number in place of those whose group is not among the best
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, broadcast, fresh, leaves, resolve, size_of
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.program import ProgramBuilder
from fuser.graph.pull import pull_view
from fuser.specs import Groups
from fuser.torch_private import eager_world

from ..declined import Declined, spelled
from .choices import found_by
from .copies import COPIES
from .filling import filled_with, writer
from .ranking import Choice, Ranking, choice_of
from .routing import summed
from .space import Place, require

MAX_NODES = 32
_MORE = "scores of groups are sums of more than two, whose rounding depends on their order"


@dataclass(frozen=True)
class Masked:
    """Scores, of which those beside the best groups are another number."""

    scores: Place
    groups: Groups


def masked(ranking: Ranking, node: Node, dims: Dims) -> Masked | None:
    """The scores that were masked by groups; None where a node masks nothing.

    Raises:
        Declined: the mask is not that of the best groups.
    """
    view = ranking.view
    for _ in range(MAX_NODES):
        op = view.op(node)
        if op.inplace or view.is_written(node):
            return None
        if op.kind is Kind.VIEW:
            ranking.interior.add(node)
            node, dims = pull_view(op, node, dims)
        elif op.name in COPIES:
            ranking.interior.add(node)
            node = op.args["input"]
        else:
            break
    op = view.op(node)
    if op.name == "masked_fill":
        source, fill, mask, filled = op.args["input"], op.args["value"], op.args["mask"], True
    elif op.name == "where":
        source, fill, mask, filled = op.args["input"], op.args["other"], op.args["condition"], False
        if is_tensor(fill) and not is_tensor(source):
            source, fill, filled = fill, source, True
    else:
        return None
    if not is_tensor(mask) or mask not in ranking.reached:
        return None
    if isinstance(fill, bool) or not isinstance(fill, (int, float)):
        raise Declined("scores are masked with a tensor", node)
    found = _flags(ranking, mask, broadcast(dims, value(mask).shape))
    keeps = (found.inside == 0) is filled and (found.outside == 0) is not filled
    require(keeps, "the best groups are masked, and not the others", mask)
    ranking.interior.add(node)
    scores = Place(source, broadcast(dims, value(source).shape))
    return Masked(scores, _best(ranking, found, scores, float(fill)))


@dataclass(frozen=True)
class _Flags:
    """A tensor of two numbers: one at the indices that were chosen, another beside them."""

    index: Node
    dims: Dims
    group: Dim
    inside: float
    outside: float


def _flags(ranking: Ranking, node: Node, dims: Dims) -> _Flags:
    view, passed = ranking.view, list[Node]()
    for _ in range(MAX_NODES):
        if view.is_written(node):
            written = writer(view, node)
            if written is None:
                break
            ranking.interior.add(node)
            ranking.followed.add(written)
            node = written
        ranking.interior.add(node)
        op = view.op(node)
        if op.name == "scatter":
            return _applied(ranking, passed, _scattered(ranking, node, dims))
        if op.kind is Kind.VIEW and not op.inplace:
            node, dims = pull_view(op, node, dims)
        elif op.kind is Kind.POINTWISE and len(node.all_input_nodes) == 1 and not op.inplace:
            passed.append(node)
            (node,) = node.all_input_nodes
        else:
            break
    raise Declined(f"{spelled(node)} stands between the best groups and the mask", node)


def _scattered(ranking: Ranking, node: Node, dims: Dims) -> _Flags:
    op, order = ranking.view.op(node), ranking.view.order[node]
    base, dim, index, src = (op.args.get(name) for name in ("input", "dim", "index", "src"))
    require(is_tensor(index) and is_tensor(base) and type(dim) is int, "a mask is unclear", node)
    require(op.args.get("reduce") is None, "a mask adds something up", node)
    assert isinstance(index, Node)
    assert isinstance(base, Node)
    assert isinstance(dim, int)
    at = dim % len(dims)
    others = [i for i in range(len(dims)) if i != at]
    whole = all(value(index).shape[i] == value(base).shape[i] for i in others)
    require(whole, "a part of the tokens has a mask", node)
    outside = filled_with(ranking.view, base, order)
    inside = filled_with(ranking.view, src, order) if is_tensor(src) else src
    two = isinstance(inside, (bool, int, float)) and outside is not None
    require(two, "a mask has more than two numbers", node)
    if base in ranking.reached:
        ranking.interior.add(base)
    own = fresh((value(index).shape[at],), "k")[0]
    index_dims = (*dims[:at], own, *dims[at + 1 :])
    return _Flags(index, index_dims, dims[at], float(inside), float(outside or 0.0))  # type: ignore[arg-type]


def _applied(ranking: Ranking, passed: list[Node], found: _Flags) -> _Flags:
    """What pointwise operators make of both numbers."""
    inside, outside = found.inside, found.outside
    with eager_world():
        for node in reversed(passed):
            (source,) = node.all_input_nodes
            builder = ProgramBuilder()
            result = builder.pointwise(ranking.view.op(node), node, {source: builder.input("x")})
            numbers = torch.tensor([inside, outside]).to(value(source).dtype)
            inside, outside = builder.finish(result)(x=numbers).double().tolist()
    return _Flags(found.index, found.dims, found.group, inside, outside)


def _best(ranking: Ranking, found: _Flags, scores: Place, fill: float) -> Groups:
    """The groups whose indices a mask has, proved to be the best by these scores."""
    view = ranking.view
    index = found.index
    chosen = choice_of(view, index.args[0]) if found_by(view, index) else None  # type: ignore[arg-type]
    best = chosen is not None and chosen.largest and chosen.indices is index
    require(best, "a mask is not that of the best groups", index)
    assert chosen is not None
    ranking.interior |= {chosen.node, *chosen.results}
    group = leaves((found.group,))
    experts = leaves((ranking.experts,))
    outer = experts[: len(group)] == group and len(experts) > len(group)
    require(outer, "groups are not made of neighbouring experts", index)
    dims = (*resolve(ranking.tokens), group)
    same = resolve(found.dims)[:-1] == resolve(ranking.tokens)
    require(same, "the best groups are those of other tokens", index)
    inner, best = _scored(ranking, chosen.scores, dims)
    _require_same(ranking, inner, (*dims, experts[len(group) :]), scores)
    count = size_of(group)
    require(isinstance(count, int), "the number of groups is a symbol", index)
    assert isinstance(count, int)
    return Groups(count, best, chosen.count, fill)


def _scored(ranking: Ranking, node: Node, dims: Dims) -> tuple[Node, int]:
    """What the score of a group is made from, and of how many of its scores it is the sum."""
    view = ranking.view
    ranking.interior.add(node)
    greatest = found_by(view, node, 0)
    if greatest is not None and greatest.name == "max":
        ranking.interior.add(node.args[0])  # type: ignore[arg-type]
        return _along_last(greatest.args["input"], greatest.args.get("dim"), node), 1
    op = view.op(node)
    if op.name == "amax":
        return _along_last(op.args["input"], op.args.get("dim"), node), 1
    found = summed(op, node, dims)
    require(found is not None, f"{spelled(node)} gives the scores of groups", node)
    assert found is not None
    source, pulled, axis = found
    chosen: Choice | None = None
    if found_by(view, source, 0) is not None and isinstance(source.args[0], Node):
        chosen = choice_of(view, source.args[0])
    last = leaves((axis,)) == leaves(pulled[-1:])
    best = chosen is not None and chosen.largest and last
    require(best, "scores of groups are no sums of the largest", node)
    assert chosen is not None
    require(chosen.count <= 2, _MORE, node)
    require(value(node).dtype == value(source).dtype, "scores of groups have another dtype", node)
    ranking.interior |= {chosen.node, *chosen.results}
    return chosen.scores, chosen.count


def _along_last(source: Any, dim: Any, node: Node) -> Node:
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        (dim,) = dim
    rank = value(source).ndim
    last = type(dim) is int and dim % rank == rank - 1 and value(node).ndim == rank - 1
    require(last, "scores of groups are taken along another dimension", node)
    return source


def _require_same(ranking: Ranking, node: Node, dims: Dims, scores: Place) -> None:
    """What groups are judged by are the scores that are masked."""
    view = ranking.view
    for _ in range(MAX_NODES):
        if node is scores.node:
            break
        op = view.op(node)
        if view.is_written(node) or op.inplace or op.kind is not Kind.VIEW:
            break
        ranking.interior.add(node)
        node, dims = pull_view(op, node, dims)
    same = node is scores.node and resolve(dims) == resolve(scores.dims)
    require(same, "groups are judged by other scores than those that are masked", node)
