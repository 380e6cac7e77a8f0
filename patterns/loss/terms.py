"""A loss as a sum of terms, read from its result upwards.

    loss = Σ_i  scale_i · Σ_rows factors_i quantity_i

Sums, differences, means, and products with what the logits have no part in are passed; factors that
differ between rows stay with their term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, broadcast, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView
from fuser.specs import Reduction

from ..captured import is_cast
from .leaves import Leaf, Quantity, leaf, same_rows

MAX_NODES = 64
_COPIES = ("clone", "contiguous", "alias")


class NoLoss(Exception):
    """A value that is no sum of terms."""


@dataclass(frozen=True)
class Factor:
    """A tensor with which a term is multiplied, or by which it is divided."""

    node: Node
    dims: Dims
    over: bool = False


@dataclass(frozen=True)
class Term:
    """One quantity of rows, with what it is multiplied with, and how rows are added up."""

    leaf: Leaf
    quantity: Quantity
    scale: float
    factors: tuple[Factor, ...] = ()
    reduction: Reduction = Reduction.NONE

    def times(self, scale: float) -> Term:
        return replace(self, scale=self.scale * scale)


@dataclass
class Terms:
    """Reads one loss; `interior` are the nodes that were passed."""

    view: GraphView
    interior: set[Node] = field(default_factory=set[Node])

    def read(self, node: Node, dims: Dims) -> list[Term]:
        """The terms of a value with these axes.

        Raises:
            NoLoss: it has others.
            Declined, Unproven: one is not known.
        """
        found = leaf(self.view, node, dims)
        if found is not None:
            self.interior.update((node, *found.normalised))
            return [Term(found, found.quantity, found.sign, (), found.reduction)]
        op = self.view.op(node)
        source = op.args.get("input")
        moved = is_tensor(source) and value(source).device != value(node).device
        if len(self.interior) > MAX_NODES or not is_tensor(node) or moved:
            raise NoLoss
        if not value(node).is_floating_point():
            raise NoLoss
        terms = self._terms(op, node, dims)
        self.interior.add(node)
        return terms

    def _terms(self, op: Op, node: Node, dims: Dims) -> list[Term]:
        source: Any = op.args.get("input")
        if op.name in _COPIES or (is_cast(op) and is_tensor(source)):
            return self.read(source, dims)
        if op.kind is Kind.VIEW:
            return self.read(*pull_view(op, node, dims))
        if op.name == "neg":
            return [term.times(-1.0) for term in self.read(source, dims)]
        if op.name in ("add", "sub"):
            return self._added(op, dims)
        if op.name in ("square", "pow") or (op.name == "mul" and source is op.args.get("other")):
            return self._square(op, source, dims)
        if op.name in ("mul", "div"):
            return self._scaled(op, dims)
        if op.name in ("sum", "mean"):
            return self._reduced(op, source)
        raise NoLoss

    def _added(self, op: Op, dims: Dims) -> list[Term]:
        a, b, alpha = op.args.get("input"), op.args.get("other"), op.args.get("alpha", 1)
        if not isinstance(alpha, (int, float)) or not is_tensor(a) or not is_tensor(b):
            raise NoLoss
        scale = float(-alpha if op.name == "sub" else alpha)
        left, right = (self.read(x, _whole(dims, x)) for x in (a, b))
        return [*left, *(term.times(scale) for term in right)]

    def _square(self, op: Op, source: Any, dims: Dims) -> list[Term]:
        if op.name == "pow" and op.args.get("other", op.args.get("exponent")) != 2:
            raise NoLoss
        terms = self.read(source, dims)
        if len(terms) != 1 or terms[0].quantity is not Quantity.LSE or terms[0].factors:
            raise NoLoss
        return [replace(terms[0], quantity=Quantity.SQUARE, scale=terms[0].scale ** 2)]

    def _scaled(self, op: Op, dims: Dims) -> list[Term]:
        """A product with, or a quotient by, a number or a tensor without terms."""
        a, b = op.args.get("input"), op.args.get("other")
        if op.args.get("rounding_mode") is not None:
            raise NoLoss
        pairs: Sequence[tuple[Any, Any]] = [(a, b)] if op.name == "div" else [(a, b), (b, a)]
        for inner, factor in pairs:
            terms = self._try(inner, dims)
            if terms is None:
                continue
            if isinstance(factor, (int, float)):
                scale = 1.0 / factor if op.name == "div" and factor else float(factor)
                if op.name == "div" and not factor:
                    raise NoLoss
                return [term.times(scale) for term in terms]
            if not is_tensor(factor):
                raise NoLoss
            added = Factor(factor, broadcast(dims, value(factor).shape), op.name == "div")
            return [replace(term, factors=(*term.factors, added)) for term in terms]
        raise NoLoss

    def _try(self, node: Any, dims: Dims) -> list[Term] | None:
        if not is_tensor(node):
            return None
        before = set(self.interior)
        try:
            return self.read(node, _whole(dims, node))
        except (NoLoss, Unproven):
            self.interior.clear()
            self.interior.update(before)
            return None

    def _reduced(self, op: Op, source: Any) -> list[Term]:
        if not is_tensor(source) or op.args.get("dtype") is not None:
            raise NoLoss
        rank, given = value(source).ndim, op.args.get("dim")
        dims = (given,) if isinstance(given, int) else given
        if dims and len({d % rank for d in dims}) != rank:
            raise NoLoss  # a part of the rows
        reduction = Reduction.SUM if op.name == "sum" else Reduction.MEAN_OF_ALL
        terms = self.read(source, fresh(value(source).shape, "r"))
        if any(term.reduction is not Reduction.NONE for term in terms):
            raise NoLoss
        return [replace(term, reduction=reduction) for term in terms]


def _whole(dims: Dims, node: Node) -> Dims:
    """The axes of an operand that is not broadcast."""
    found = broadcast(dims, value(node).shape)
    if leaves(found) != leaves(dims):
        raise NoLoss
    return found


def paired(terms: Sequence[Term]) -> list[Term] | None:
    """The same sum with every logsumexp less the target's logit as one term; None where one of
    them is left over."""
    found = [t for t in terms if t.quantity in (Quantity.NLL, Quantity.SQUARE)]
    lse, picked = ([t for t in terms if t.quantity is q] for q in (Quantity.LSE, Quantity.PICKED))
    if len(lse) != len(picked):
        return None
    for a, b in zip(lse, picked, strict=True):
        if a.scale != -b.scale or a.reduction is not b.reduction or not _alike(a, b):
            return None
        found.append(replace(a, leaf=b.leaf, quantity=Quantity.NLL))
    return found


def _alike(a: Term, b: Term) -> bool:
    factors: Callable[[Term], list[Any]] = lambda t: [(f.node, f.over) for f in t.factors]  # noqa: E731
    return same_rows(a.leaf, b.leaf) and factors(a) == factors(b) and _same_dims(a, b)


def _same_dims(a: Term, b: Term) -> bool:
    pairs = zip(a.factors, b.factors, strict=True)
    return all(resolve(x.dims) == resolve(y.dims) for x, y in pairs)
