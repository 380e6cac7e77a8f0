"""A sum over choices, or over experts, that is written out: what is at one position after another.

sum(weights[:, k, None] * rows[:, k] for k in range(choices))
sum(weights[:, k, None] * rows[indices[:, k], arange(tokens)] for k in range(choices))
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, leaves, renamed
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView

from ..declined import Declined
from .additions import additions, beneath, is_inner, is_zero, smallest, terms
from .branches import column
from .rows import rows_of
from .space import Place, Space, require
from .taken import Taken, taken
from .weights import Weights


@dataclass(frozen=True)
class Unrolled:
    """A sum over a dimension.

    Attributes:
        end: the last addition.
        rows: what is added up along `axis`; or, where rows of all experts are taken, the indices.
        of: which rows of all experts are taken.
        weights: what it is multiplied with.
        passed: nodes between.
        others: what else is added.
    """

    end: Node
    rows: Place
    axis: Dim
    of: Taken | None
    weights: Weights
    passed: frozenset[Node]
    others: tuple[Node, ...]


@dataclass(frozen=True)
class _Term:
    """What is at one position, times what is there of the weights."""

    number: int
    rows: Place
    axis: Dim
    of: Taken | None
    weights: Weights
    count: object

    def joins(self, other: _Term) -> bool:
        """Whether both are of the same rows and weights."""
        own = (self.rows, self.of, self.weights, self.count)
        return own == (other.rows, other.of, other.weights, other.count)


def unrolled(view: GraphView, anchor: Node, out_dims: Dims) -> Unrolled | None:
    """The sum that a chain of additions is, if all positions are among what it adds up.

    Raises:
        Declined: it is added in place to what something else has made.
    """
    if is_inner(view, anchor):
        return None
    interior, apart = set[Node](), False
    found: dict[Node, _Term] = {}
    first: _Term | None = None
    for node in terms(view, anchor):
        space = Space(view, value(anchor).dtype, leaves(out_dims[:-1]))
        term = _term(space, node, out_dims, first)
        first = first or term
        if term is not None and first is not None and term.joins(first):
            found[node] = term
            interior |= space.interior
        elif term is not None:
            apart |= term.of is not None
    numbers = sorted(term.number for term in found.values())
    whole = first is not None and first.count == len(numbers) == len({*numbers})
    if first is not None and first.of is not None and (len(numbers) > 1 or apart):
        own = "rows of experts are not taken for each choice once, with the weight of that choice"
        require(whole and not apart, own, anchor)
    if first is None or not whole or not first.weights.factors:
        return None
    end = smallest(view, anchor, set(found))
    every = terms(view, end)
    passed, others = additions(view, end, every), list[Node]()
    for node in every:
        if node not in found:
            zero = is_zero(view, node)
            passed |= {node} if zero else set()
            others += [] if zero else [beneath(view, node, passed)]
    nodes = frozenset(passed | interior)
    return Unrolled(end, first.rows, first.axis, first.of, first.weights, nodes, tuple(others))


def _term(space: Space, node: Node, out_dims: Dims, first: _Term | None) -> _Term | None:
    """Rows at a position, with the axes of the first term."""
    view = space.view
    try:
        rows = rows_of(space, node, out_dims)
        of = taken(space, rows.node, rows.dims)
        cut = column(view, Place(rows.node, rows.dims) if of is None else of.indices)
    except (Declined, Unproven):
        return None
    if cut is None:
        return None
    source, dims, own_axis, number = cut
    space.interior |= {rows.node, *(n for n in rows.node.all_input_nodes if not is_tensor(n))}
    axis = own_axis if first is None else first.axis
    count = value(source).shape[_at(cut)]
    factors: list[Place] = []
    for factor in rows.weights.factors:
        own = column(view, factor)
        if own is None or own[3] != number or value(own[0]).shape[_at(own)] != count:
            factors.append(factor)
        else:
            factors.append(Place(own[0], _named(own[1], own[2], axis)))
    weights = Weights(tuple(factors), rows.weights.scale)
    told = Place(source, _named(dims, own_axis, axis))
    if of is not None:
        experts = of.experts if first is None or first.of is None else first.of.experts
        of = Taken(of.source, _named(of.dims, of.experts, experts), experts, told)
    return _Term(number, told, axis, of, weights, count)


def _named(dims: Dims, own: Dim, axis: Dim) -> Dims:
    """With the axis of the first term, if it has as many parts."""
    return renamed(dims, dict(zip(leaves((own,)), leaves((axis,)), strict=False)))


def _at(cut: tuple[Node, Dims, Dim, int]) -> int:
    return cut[1].index(cut[2])
