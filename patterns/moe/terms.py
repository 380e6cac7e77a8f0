"""Masks of zeros and ones, and what is made of them, read as sums of products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import (
    Axis,
    Dim,
    Dims,
    Unproven,
    broadcast,
    leaves,
    resolve,
    same_size,
    size_of,
)
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import is_contraction, pull_contraction, pull_pointwise, pull_view
from fuser.graph.view import GraphView

from .copies import CASTS, COPIES
from .routing import Routing, summed
from .space import Place, Space
from .weights import Weights

MAX_STEPS = 512
MAX_TERMS = 16
MAX_DEPTH = 32
WHOLE = ("int", "long", "double", "float")


@dataclass(frozen=True)
class Factor:
    """A tensor with its axes."""

    node: Node
    dims: Dims

    @property
    def axes(self) -> set[Axis]:
        return set(leaves(self.dims))


class Masks:
    """Reads masks as sums of products.

    Attributes:
        experts: their axis.
        slots: that of the places of each.
    """

    def __init__(self, view: GraphView, experts: Dim, slots: Dim) -> None:
        self.view, self.experts, self.slots = view, experts, slots
        self._steps = 0

    def terms(self, node: Node, dims: Dims, reader: Node) -> list[frozenset[Factor]]:
        """The products that a tensor is the sum of.

        Raises:
            Unproven: it was written to before it was read, or there are too many.
        """
        self._steps += 1
        if self._steps > MAX_STEPS or self.view.is_written(node, reader):
            raise Unproven("a mask in too many steps, or one that is written to")
        found = self._terms(self.view.op(node), node, resolve(dims))
        if found is None:
            return [frozenset({Factor(node, resolve(dims))})]
        if len(found) > MAX_TERMS:
            raise Unproven("a mask of too many parts")
        return [frozenset(replace(f, dims=resolve(f.dims)) for f in term) for term in found]

    def _terms(self, op: Op, node: Node, dims: Dims) -> list[frozenset[Factor]] | None:
        source: Any = op.args.get("input")
        if op.kind is Kind.VIEW:
            return self.terms(*pull_view(op, node, dims), node)
        if op.name in COPIES or (op.name in (*CASTS, *WHOLE) and self._keeps(source, node)):
            return self.terms(source, dims, node)
        if op.name == "add" and op.args.get("alpha", 1) == 1:
            inputs = pull_pointwise(op, node, dims)
            both = len(inputs) == 2
            return [t for pair in inputs.items() for t in self.terms(*pair, node)] if both else None
        if op.name in ("mul", "bitwise_and", "logical_and"):
            inputs = list(pull_pointwise(op, node, dims).items())
            return self._product([self.terms(*pair, node) for pair in inputs])
        if op.name == "div" and op.args.get("rounding_mode") is None and is_tensor(source):
            other = op.args["other"]
            own = broadcast(dims, value(other).shape) if is_tensor(other) else ()
            if not set(leaves(own)) & set(leaves((self.experts, self.slots))):
                return self.terms(source, broadcast(dims, value(source).shape), node)
        if op.name == "where" and op.args.get("other") in (0, 0.0, False):
            names = [op.args[name] for name in ("condition", "input")]
            parts = [(n, broadcast(dims, value(n).shape)) for n in names if is_tensor(n)]
            return self._product([self.terms(*pair, node) for pair in parts])
        if is_contraction(op):
            found = pull_contraction(op, node, dims)
            sides = [(found.a, found.a_dims), (found.b, found.b_dims)]
            terms = self._product([self.terms(*side, node) for side in sides])
            return None if self._picks(terms, found.inner) else terms
        if op.name == "sum":
            inner = summed(op, node, dims)
            terms = [] if inner is None else self.terms(*inner[:2], node)
            return None if inner is None or self._picks(terms, inner[2]) else terms
        return None

    def _picks(self, terms: Sequence[frozenset[Factor]], along: Dim) -> bool:
        """Whether a sum only picks what belongs to the one expert of a row."""
        inner = set(leaves((along,)))
        return any(
            self.one_hot(f) is not None and set(leaves(f.dims[-1:])) & inner
            for term in terms
            for f in term
        )

    @staticmethod
    def _product(sides: Sequence[list[frozenset[Factor]]]) -> list[frozenset[Factor]]:
        found: list[frozenset[Factor]] = [frozenset()]
        for side in sides:
            found = [term | other for term in found for other in side]
        return found

    def _keeps(self, source: Any, node: Node) -> bool:
        """Whether a cast keeps zeros, ones, and whether a number is zero."""
        if not is_tensor(source):
            return False
        before, after = value(source).dtype, value(node).dtype
        return not before.is_floating_point or after.is_floating_point

    def is_binary(self, factor: Factor) -> bool:
        """Whether a factor is zero or one."""
        return value(factor.node).dtype is torch.bool or self.one_hot(factor) is not None

    def one_hot(self, factor: Factor) -> tuple[Node, Dims] | None:
        """What `one_hot` was given, with its axes."""
        op = self.view.op(factor.node)
        return (op.args["input"], factor.dims[:-1]) if op.name == "one_hot" else None

    def facts(self, term: frozenset[Factor]) -> frozenset[Factor]:
        """The factors that are one wherever a product is not zero."""
        found = {f for f in term if self.is_binary(f)}
        for factor in term - found:
            op = self.view.op(factor.node)
            inner = summed(op, factor.node, factor.dims, ("sum", "amax"))
            if inner is None or not same_size(size_of(inner[2]), size_of(self.experts)):
                continue
            own = tuple(self.experts if d == inner[2] else d for d in resolve(inner[1]))
            terms = self.terms(inner[0], own, factor.node)
            picks = len(terms) == 1 and all(map(self.is_binary, terms[0]))
            if picks and any(self.is_one_expert(f) for f in terms[0] & found):
                found |= {factor, *terms[0]}
        return frozenset(found)

    def is_one_expert(self, factor: Factor) -> bool:
        """Whether a mask is one for one expert of a row alone."""
        one = self.one_hot(factor) is not None
        return one and leaves(factor.dims[-1:]) == leaves((self.experts,))


def is_within(mask: frozenset[Factor], term: frozenset[Factor], dims: Dims) -> bool:
    """Whether all factors of a product are among those of another one, but for the names of axes
    that are added up."""
    names: dict[Axis, Axis] = {a: a for a in leaves(dims)}
    for factor in mask:
        own = leaves(factor.dims)
        for other in (f for f in term if f.node is factor.node):
            theirs = leaves(other.dims)
            pairs = list(zip(own, theirs, strict=False))
            known = all(names.get(a, b) is b for a, b in pairs)
            free = all(a in names or b not in names.values() for a, b in pairs)
            if len(own) == len(theirs) and known and free:
                names.update(pairs)
                break
        else:
            return False
    return True


def nonzero_of(view: GraphView, place: Place) -> Place | None:
    """The tensor of which a mask tells where it is not zero, of either sign."""
    found = bare(view, place)
    op = view.op(found.node)
    source, other = op.args.get("input"), op.args.get("other")
    compared = op.name == "ne" and not is_tensor(other) and other in (0, 0.0)
    cast = op.name in ("bool", "to") and value(found.node).dtype is torch.bool
    return Place(source, found.dims) if is_tensor(source) and (compared or cast) else None


def bare(view: GraphView, place: Place) -> Place:
    """Past copies and casts that keep zeros apart."""
    node, dims = place.node, resolve(place.dims)
    for _ in range(MAX_DEPTH):
        op = view.op(node)
        source = op.args.get("input")
        if not is_tensor(source) or op.inplace or op.name not in (*COPIES, *CASTS):
            break
        if value(source).dtype.is_floating_point and not value(node).dtype.is_floating_point:
            break
        node = source
    return Place(node, dims)


def only_sends(space: Space, before: Weights, after: Weights, reader: Node) -> bool:
    """Whether tokens are multiplied with zero or one before the experts, and with one wherever the
    weight after them is not zero."""
    masks = Masks(space.view, space.chosen, ())
    try:
        known = [(f, masks.terms(f.node, f.dims, reader)) for f in after.factors]
        return all(
            any(_is_told(masks, mask, *weight, reader) for weight in known)
            for mask in before.factors
        )
    except Unproven:
        return False


def _is_told(
    masks: Masks, mask: Place, weight: Place, terms: Sequence[frozenset[Factor]], reader: Node
) -> bool:
    """Whether a mask is one wherever a weight is not zero."""
    source = nonzero_of(masks.view, mask)
    if source is not None and bare(masks.view, source) == bare(masks.view, weight):
        return True
    own = masks.terms(mask.node, mask.dims, reader)
    unique = len(own) == 1 and not {a for f in own[0] for a in f.axes} - set(leaves(mask.dims))
    if not unique and Routing(masks.view, masks.experts).support(mask.node, mask.dims) is None:
        return False  # a sum of masks, of which two may be one
    whole = all(term <= masks.facts(term) for term in own)
    return whole and all(any(is_within(m, term, mask.dims) for m in own) for term in terms)
