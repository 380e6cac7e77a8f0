"""What a softmax may lose that was taken away from its scores: their own maximum over the keys.

    softmax(x - r) = softmax(x)   for every r that is the same for all keys

That is so in real numbers. In floating point it is where r is the maximum, which a softmax takes
away itself. Any other r rounds the scores, brings NaN and infinities, and may want a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, broadcast, leaves, resolve
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView

from .walk import peel

Chain = list[tuple[Node, Dims]]


@dataclass(frozen=True)
class Shift:
    """A maximum of the scores over the keys.

    Attributes:
        node: what is taken away.
        nodes: everything that computes it from the scores.
        terms: tensors that it is at least, with what they are views of.
    """

    node: Node
    nodes: tuple[Node, ...] = ()
    terms: tuple[Chain, ...] = ()


def read_shift(
    view: GraphView, node: Node, dims: Dims, keys: Dim, *, bounded: bool
) -> tuple[Node, Shift] | None:
    """x and r of `x - r` where r is the maximum of x over exactly the keys.

    With `bounded`, r may also be clamped, or at least some tensor without keys: exponentials over
    their sum are the same for every r with which none overflows.
    """
    op = view.op(node)
    scores, shift = op.args.get("input"), op.args.get("other")
    if op.name != "sub" or op.args.get("alpha", 1) != 1:
        return None
    if not is_tensor(scores) or not is_tensor(shift):
        return None
    try:
        if resolve(broadcast(dims, value(scores).shape)) != resolve(dims):
            return None
        below = broadcast(dims, value(shift).shape)
        if set(leaves(below)) & set(leaves((keys,))):
            return None
        of = peel(view, scores, dims, node, values=True)
        found = _maximum(view, peel(view, shift, below, node, values=True), of, keys, bounded)
    except Unproven:
        return None
    return None if found is None else (scores, replace(found, node=shift))


def until_common(a: Chain, b: Chain) -> list[Node] | None:
    """What stands in one chain before the first tensor that both hold at the same indices."""
    known = {(n, resolve(d)) for n, d in b}
    for i, (node, dims) in enumerate(a):
        if (node, resolve(dims)) in known:
            return [n for n, _ in a[:i]]
    return None


def _maximum(view: GraphView, chain: Chain, of: Chain, keys: Dim, bounded: bool) -> Shift | None:
    """Reads the end of a chain of views as a maximum of the scores `of`."""
    node, dims = chain[-1]
    passed = tuple(n for n, _ in chain)
    op = view.op(node)

    def bound(inner: Node) -> Shift | None:
        below = broadcast(dims, value(inner).shape)
        found = _maximum(view, peel(view, inner, below, node, values=True), of, keys, True)
        return found and replace(found, nodes=(*passed, *found.nodes))

    if bounded and op.name in ("clamp", "clamp_min", "clamp_max"):
        bounds = [b for b in (op.args.get("min"), op.args.get("max")) if b is not None]
        finite = all(isinstance(b, (int, float)) and math.isfinite(b) for b in bounds)
        return bound(op.args["input"]) if finite else None
    if bounded and op.name == "maximum":
        a, b = op.args["input"], op.args["other"]
        for inner, other in ((a, b), (b, a)):
            found = bound(inner)
            if found is not None:
                term = peel(view, other, broadcast(dims, value(other).shape), node, values=True)
                return replace(found, terms=(*found.terms, term))
        return None
    nodes = _reduced(view, node, dims, of, keys)
    return None if nodes is None else Shift(node, (*passed, *nodes))


def _reduced(view: GraphView, node: Node, dims: Dims, of: Chain, keys: Dim) -> list[Node] | None:
    """What stands between the scores and their maximum over the keys, laid out as `dims`."""
    passed: list[Node] = []
    op = view.op(node)
    if op.name == "getitem" and op.args["index"] == 0 and not is_tensor(op.args["input"]):
        node = op.args["input"]  # the values of `max(dim)`
        op, passed = view.op(node), [node]
    dim: Any = op.args.get("dim")
    dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
    if op.kind is not Kind.REDUCE or op.name not in ("amax", "max") or not isinstance(dim, int):
        return None
    source = op.args["input"]
    dim %= value(source).ndim
    kept = op.args.get("keepdim") is True
    above = (*dims[:dim], keys, *dims[dim + kept :])
    if len(above) != value(source).ndim:
        return None
    nodes = until_common(peel(view, source, above, node, values=True), of)
    return None if nodes is None else [*passed, *nodes]
