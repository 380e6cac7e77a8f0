"""Rows of a mixture: which token each of them is, and which expert it goes through.

all experts       a row for every token and every expert     x[t], matrices[e]
chosen ones       a row for every token and each choice      x[t], matrices[indices[t, k]]
one expert        a row for every token                      x[t], matrices of that expert
sorted            a row for every choice, in the order of experts
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, broadcast, fresh, leaves, resolve, size_of
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView

from ..declined import Declined
from .arange import repeated
from .choices import reads_as_told
from .copies import CASTS, COPIES
from .order import Order, picked


@dataclass(frozen=True)
class Place:
    """A tensor with its axes, and those of them that tell experts apart, if any does."""

    node: Node
    dims: Dims
    experts: Dim = ()


@dataclass
class Space:
    """The rows that experts compute.

    Attributes:
        view: the graph.
        dtype: of the sum.
        tokens: axes that tell tokens apart.
        chosen: axes that tell the rows of a token apart: choices, or experts where `dense`; none
            where rows are those of one expert.
        dense: every token goes through every expert.
        places: rows are places of experts, which tokens were sent to.
        indices: which experts were chosen, once that is known.
        order: in which rows are sorted, once they are.
        interior: nodes that were passed.
        followed: those of them that write in place.
    """

    view: GraphView
    dtype: torch.dtype
    tokens: Dim
    chosen: Dim = ()
    dense: bool = False
    places: bool = False
    indices: Place | None = None
    order: Order | None = None
    interior: set[Node] = field(default_factory=set)
    followed: set[Node] = field(default_factory=set)

    @property
    def token_axes(self) -> set[Axis]:
        places = () if self.order is None else self.order.row
        return set(leaves((self.tokens, places)))

    @property
    def chosen_axes(self) -> set[Axis]:
        return set(leaves((self.chosen,)))

    @property
    def row_axes(self) -> set[Axis]:
        return self.token_axes | self.chosen_axes

    @property
    def picked_axes(self) -> set[Axis]:
        """Axes of rows of which nothing outside knows: they were picked by a mask."""
        return set()

    @property
    def sorted(self) -> bool:
        """Whether rows are in the order of their experts."""
        return self.order is not None

    def ends_at(self, ends: Node, experts: int) -> bool:
        """Whether the rows of each expert end where a tensor says."""
        return self.order is not None and self.order.holds_ends(self.view, ends, experts)

    def locate(self, node: Node, dims: Dims) -> Place:
        """What a tensor is a view of, and for each row a part of.

        Raises:
            Unproven: it is read at rows that are not those of its place.
        """
        node, dims = self._peel(node, dims)
        found = None if self.view.is_written(node) else self._selected(node, dims)
        if found is None:
            return self._as_it_is(node, dims)
        source, index, index_dims, rest = found
        placed = self._placed(index, index_dims)
        if placed is not None:
            return self.locate(source, (placed, *rest))
        if self.row_axes & set(leaves(rest)) or not self._is_choice(index, index_dims):
            return self._as_it_is(node, dims)
        experts = fresh(value(source).shape[:1], "e")[0]
        source, whole = self._peel(source, (experts, *rest))
        return Place(source, whole, experts)

    def _selected(self, node: Node, dims: Dims) -> tuple[Node, Node, Dims, Dims] | None:
        """What is read at which positions along its first dimension: the tensor, the positions,
        their axes, and those of what is read there."""
        op = self.view.op(node)
        part = selected(op)
        if part is not None:
            rank = value(part.index).ndim
            return part.source, part.index, dims[:rank], dims[rank + part.new :]
        if op.args.get("dim") != 0 or not reads_as_told(self.view, op):
            return None
        source, index = op.args["input"], op.args["index"]
        if value(source).shape[1:] != value(node).shape[1:]:
            return None
        index, own = self._peel(index, broadcast(dims, value(index).shape))
        same = leaves(own) == leaves(dims[:1])
        return (source, index, own, dims[1:]) if same else None

    def locate_at(self, source: Node, index: Node, by: int, rest: Dims) -> Place:
        """Where a tensor is that is read at every row: at an index, divided by a number and rounded
        down; with the axes of what is read there.

        Raises:
            Unproven: nothing tells which tokens or choices those are.
        """
        order = self.order
        if order is None or self.view.is_written(index):
            raise Unproven("rows are read at unknown places")
        if by == 1:
            placed = self._placed(index, (order.row,))
        else:
            tokens = order.holds_order(index) and size_of(self.chosen) == by
            placed = self.tokens if tokens else None
        if placed is None:
            raise Unproven("rows are read at unknown places")
        return self.locate(source, (placed, *rest))

    def weight(self, place: Place) -> Place:
        """Where a factor of rows is from, unless that is another number for every expert."""
        found = self.locate(place.node, place.dims)
        one = self.dense or not found.experts
        return found if one else Place(place.node, resolve(place.dims))

    def _as_it_is(self, node: Node, dims: Dims) -> Place:
        return Place(first_alike(self.view, node), dims, self._experts_among(dims))

    def _placed(self, index: Node, dims: Dims) -> Dim | None:
        """What the first dimension of a tensor is that is read at the places of sorted rows."""
        order = self.order
        if order is None or set(leaves(dims)) != set(leaves((order.row,))):
            return None
        if order.holds_order(index):
            return (*self.tokens, *self.chosen)
        choices = size_of(self.chosen)
        if not isinstance(choices, int):
            return None
        if order.holds_tokens(self.view, index, choices):
            return self.tokens
        taken = picked(self.view.op(index))
        if taken is None or not order.holds_order(taken[1]):
            return None
        return self.tokens if repeated(self.view, taken[0]) == choices else None

    def sort(self, order: Order, dims: Dims) -> Dims:
        """Axes of rows that are in an order from here on, whose first dimension were choices.

        Raises:
            Unproven: they were not, token by token.
        """
        if leaves(dims[:1]) != (*leaves((self.tokens,)), *leaves((self.chosen,))):
            raise Unproven("rows are taken in another order than token by token")
        node, own = self._peel(order.ids, (leaves(dims[:1]),))
        self.indices = Place(node, own)
        row = (Axis(size_of(leaves(dims[:1])), "row"),)
        self.order = Order(order.order, order.ids, row)
        return (row, *dims[1:])

    def _experts_among(self, dims: Dims) -> Dim:
        return self.chosen if self.dense and self.chosen_axes & set(leaves(dims)) else ()

    def _peel(self, node: Node, dims: Dims) -> tuple[Node, Dims]:
        for _ in range(32):
            op = self.view.op(node)
            if self.view.is_written(node):
                break
            if op.kind is Kind.VIEW and not op.inplace:
                try:
                    source, pulled = pull_view(op, node, dims)
                except Unproven:
                    break
            elif is_copy(op, node):
                source, pulled = op.args["input"], dims
            else:
                break
            node, dims = source, pulled
        return node, resolve(dims)

    def _is_choice(self, index: Node, dims: Dims) -> bool:
        """Whether an index tensor tells for every row which expert it goes through."""
        if value(index).dtype not in (torch.int64, torch.int32) or self.dense:
            return False
        node, dims = self._peel(index, dims)
        if set(leaves(dims)) - self.row_axes:
            return False
        if self.order is not None:
            return self.order.holds_ids(self.view, node)
        node = first_alike(self.view, node)
        if self.indices is None:
            self.indices = Place(node, dims)
        known = self.indices
        return known.node is node and resolve(known.dims) == resolve(dims)


def first_alike(view: GraphView, node: Node) -> Node:
    """Where a tensor is cast several times alike, or a part of it is taken several times, the first
    of these."""
    op = view.op(node)
    source = op.args.get("input")
    alike = op.name in CASTS or op.kind is Kind.SLICE or op.name == "select"
    if not alike or op.inplace or not is_tensor(source):
        return node
    known = [
        user
        for user in source.users
        if (user.op, user.target, user.args, user.kwargs)
        == (node.op, node.target, node.args, node.kwargs)
        and value(user).requires_grad == value(node).requires_grad
        and not view.is_written(user)
    ]
    first = min([node, *known], key=lambda n: view.order[n])
    since = view.mutated_between(source, view.order[first], view.order[node])
    return first if since is None else node


def is_copy(op: Op, node: Node) -> bool:
    """Whether a node has the numbers of its input."""
    source = op.args.get("input")
    if not is_tensor(source):
        return False
    same = value(source).dtype is value(node).dtype and value(source).device == value(node).device
    return op.name in COPIES or (op.name in CASTS and same)


@dataclass(frozen=True)
class Selection:
    """`source[index]`, along the first dimension; `new` dimensions of one follow the index."""

    source: Node
    index: Node
    new: int = 0


def selected(op: Op) -> Selection | None:
    """What a node selects along the first dimension by a tensor of positions."""
    if op.name == "index_select" and op.args.get("dim") == 0:
        return Selection(op.args["input"], op.args["index"])
    if op.name == "embedding" and is_tensor(op.args.get("weight")):
        unusual = {"padding_idx", "max_norm", "scale_grad_by_freq", "sparse"}
        plain = all(op.args.get(name) in (None, False) for name in unusual)
        return Selection(op.args["weight"], op.args["input"]) if plain else None
    if op.kind is not Kind.SLICE or op.name != "getitem":
        return None
    index = op.args["index"]
    first, *rest = index if isinstance(index, tuple) else (index,)
    while rest and rest[-1] in (Ellipsis, slice(None)):
        rest.pop()
    if not is_tensor(first) or any(part is not None for part in rest):
        return None
    return Selection(op.args["input"], first, len(rest))


def require(condition: bool, reason: str, node: Node, hint: str = "") -> None:
    """Ends the walk where a fact does not hold."""
    if not condition:
        raise Declined(reason, node, hint)
