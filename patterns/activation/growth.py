"""How a region grows: pointwise operators around an activation.

Downwards they join as long as one tensor alone leaves the region in the end; upwards where nobody
else reads their results. Views that have every element once are passed on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch.fx import Node

from fuser.graph.effects import draws
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView

from ..captured import loses_nothing
from ..neighbours import DTYPES, EIGHT_BITS, behind_views, readers, rearranges, same_shape
from .anchors import GLU

MAX_AFTER = 24
MAX_BEFORE = 24
"""Longest parts of a chain: a gelu that is written out takes nine operators."""


def chains(view: GraphView, anchor: Node) -> list[tuple[Node, ...]]:
    """Pointwise operators from an anchor down, of which the last alone is read by others; the
    longest chain first. One to eight bits is the end: no gradient goes through it."""
    found: list[tuple[Node, ...]] = []
    taken, pending = [anchor], readers(view, anchor)
    while True:
        if _ends(view, taken):
            found.append(tuple(taken))
        if not pending or len(taken) == MAX_AFTER:
            return found[::-1]
        node = min(pending, key=view.order.__getitem__)
        pending.discard(node)
        like = next(source for source in node.all_input_nodes if source in taken)
        rounded = _joins(view, node, like, taken, EIGHT_BITS) and not value(node).requires_grad
        if not (rounded or rearranges(view, node) or _joins(view, node, like, taken)):
            return found[::-1]
        taken.append(node)
        pending |= readers(view, node)
        if value(node).dtype in EIGHT_BITS:
            return [tuple(taken), *found[::-1]] if _ends(view, taken) else found[::-1]


def above(view: GraphView, chain: Sequence[Node]) -> set[Node]:
    """What is pointwise above a chain, and read within it alone."""
    inside, found = set(chain), set[Node]()
    pending = [(source, node) for node in chain for source in node.all_input_nodes]
    while pending and len(found) < MAX_BEFORE:
        node, reader = pending.pop()
        passed, source = behind_views(view, node, inside)
        if source in inside or not is_tensor(source):
            continue
        if passed and not _has_elements_of(view, node, reader):
            continue
        if not readers(view, source) <= inside | passed:
            continue
        if not _joins(view, source, source if passed else reader, inside, (*DTYPES, torch.bool)):
            continue
        found |= {*passed, source}
        inside |= found
        pending += [(n, source) for n in source.all_input_nodes]
    return found


def _ends(view: GraphView, taken: Sequence[Node]) -> bool:
    """Whether a region may end with its last operator: who reads a copy of a tensor, or the tensor
    in another arrangement, may look through that."""
    inside, last = set(taken), taken[-1]
    op = view.op(last)
    is_copy = op.kind is Kind.POINTWISE and loses_nothing(op, last)
    if len(taken) > 1 and (is_copy or rearranges(view, last)):
        return False
    return all(readers(view, node) <= inside for node in taken[:-1])


def _joins(
    view: GraphView, node: Node, like: Node, inside: Collection[Node],
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> bool:  # fmt: skip
    """Whether an operator may be a part of a program over tensors of one shape."""
    op = view.op(node)
    if not is_tensor(node) or not same_shape(node, like):
        return False
    if op.inplace and op.args.get("input") not in inside:
        return False
    if op.kind is Kind.DROPOUT or op.name == GLU:
        return not draws(node, op) and value(node).dtype in DTYPES
    known = all(is_tensor(n) for n in node.all_input_nodes)
    return op.kind is Kind.POINTWISE and known and value(node).dtype in dtypes


def _has_elements_of(view: GraphView, node: Node, reader: Node) -> bool:
    """Whether what an operator reads is not broadcast there."""
    return rearranges(view, reader) or same_shape(node, reader)
