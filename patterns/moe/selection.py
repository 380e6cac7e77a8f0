"""Which tokens an expert of a loop is given: positions at which a mask is true.

b, k = torch.where(indices == e)        k, b = torch.where(one_hot(indices)[..., e].T)
b = (choice == e).nonzero().squeeze(-1) x[choice == e]

A row of the expert stands for one of these positions, in their order.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch.fx import Node

from fuser.graph.axes import (
    Axis,
    Dim,
    Dims,
    Size,
    Unproven,
    fresh,
    leaves,
    quotient,
    regroup,
    renamed,
    resolve,
    same_size,
    size_of,
    split_dim,
)
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr
from fuser.turns import bins_of, held, name_of

from .arange import tokens_of
from .branches import column
from .masks import told
from .space import Place, Space

_LIMIT = 64
_POSITIONS = {"nonzero", "argwhere", "where"}


@dataclass(frozen=True)
class Coordinate:
    """Positions at which a mask is true, along one of its dimensions."""

    mask: Node
    dim: int
    passed: tuple[Node, ...]


@dataclass(frozen=True)
class Column(Place):
    """One column of a tensor, read at rows.

    Attributes:
        axis: of the columns.
        number: which one.
    """

    axis: Dim = ()
    number: int = 0


@dataclass
class Picked(Space):
    """Rows at which a mask is true.

    Attributes:
        row: the axis of the rows.
        mask, mask_dims: the mask, and which tokens and choices its elements are.
    """

    row: Dim = ()
    mask: Node | None = None
    mask_dims: Dims = ()

    @property
    def token_axes(self) -> set[Axis]:
        return super().token_axes | self.picked_axes

    @property
    def picked_axes(self) -> set[Axis]:
        return set(leaves((self.row,)))

    def locate(self, node: Node, dims: Dims) -> Place:
        """What a tensor is a view of, each row read at its token and choice.

        Raises:
            Unproven: it is read elsewhere.
        """
        inner, own = self._peel(node, dims)
        if set(leaves(own)) & set(leaves((self.row,))) and not self.view.is_written(inner):
            op, cut = self.view.op(inner), None
            source = self._picked(op, own)
            if source is None:
                cut = self._column(op, own)
                source = cut and cut[:2]
            if source is not None:
                while node is not inner:
                    self.interior.add(node)
                    node = self.view.op(node).args["input"]
                self.interior.add(inner)
                found = self.locate(*source)
                return found if cut is None else Column(found.node, found.dims, (), *cut[2:])
        return super().locate(inner, own)

    def _column(self, op: Op, dims: Dims) -> tuple[Node, Dims, Dim, int] | None:
        """The tensor of which a column is read at the places of the rows, `t[rows, number]`: its
        axes, that of the columns, and which."""
        index = op.args.get("index")
        if op.kind is not Kind.SLICE or op.name != "getitem" or not isinstance(index, tuple):
            return None
        source, count = op.args["input"], sum(map(is_tensor, index))
        first = index[:count]
        number = index[count] if len(index) > count else None
        rest = index[count + 1 :]
        at = sum(value(part).ndim for part in first if is_tensor(part))
        plain = all(map(is_tensor, first)) and all(part is None for part in rest)
        if not plain or type(number) is not int or at >= value(source).ndim or not dims:
            return None
        size = value(source).shape[at]
        if not isinstance(size, int) or size < 2:
            return None
        axis = fresh((size,), "e")[0]
        whole = self.axes_at((*first, slice(None), *rest), (dims[0], axis, *dims[1:]), at + 1)
        if value(source).ndim != at + 1 or not _is_whole(whole, source):
            return None
        return source, whole, axis, number % size

    def _picked(self, op: Op, dims: Dims) -> tuple[Node, Dims] | None:
        """The tensor that is read at the places of the rows, and its axes."""
        if op.name == "index_select" and type(op.args.get("dim")) is int:
            source = op.args["input"]
            dim = op.args["dim"] % value(source).ndim
            index: Sequence[Any] = (*[slice(None)] * dim, op.args["index"])
        elif op.kind is Kind.SLICE and op.name == "getitem":
            source, given = op.args["input"], op.args["index"]
            index = given if isinstance(given, (tuple, list)) else (given,)
        else:
            return None
        whole = self.axes_at(index, dims, value(source).ndim)
        return (source, whole) if _is_whole(whole, source) else None

    def axes_at(self, index: Sequence[Any], dims: Dims, rank: int) -> Dims | None:
        """Axes of a tensor of which rows with these axes are read at, or written to, an index."""
        parts = self._parts(index, rank)
        if parts is None:
            return None
        at = [i for i, part in enumerate(parts) if isinstance(part, tuple)]
        if not at or at != list(range(at[0], at[-1] + 1)):
            return None
        left, whole = list(resolve(dims)), list[Dim]()
        for i, part in enumerate(parts):
            if isinstance(part, tuple):
                if i == at[0] and leaves((left.pop(0),)) != leaves((self.row,)):
                    return None
                whole += part
            elif part is None:
                if left.pop(0):
                    return None
            else:
                whole.append(left.pop(0))
        whole += left
        return tuple(whole) if len(whole) == rank else None

    def _parts(self, index: Sequence[Any], rank: int) -> list[Any] | None:
        """Parts of an index: axes for a tensor, None for a new dimension, `:` for a whole one."""
        found: list[Any] = []
        for part in index:
            if is_tensor(part):
                axes = self._axes_of(part)
                if axes is None:
                    return None
                found.append(axes)
            elif part is None or part is Ellipsis or part == slice(None):
                found.append(part)
            else:
                return None
        if Ellipsis in found:
            taken = sum(len(p) if isinstance(p, tuple) else p is not None for p in found) - 1
            at = found.index(Ellipsis)
            found[at : at + 1] = [slice(None)] * (rank - taken)
        return None if Ellipsis in found else found

    def _axes_of(self, part: Node) -> Dims | None:
        """The axes that a tensor of positions, or the mask itself, stands for."""
        whole = self._alike(part)
        if whole is not None:
            return whole
        part, choices, made = tokens_of(self.view, part)
        found = coordinate(self.view, part)
        found = Coordinate(part, 0, ()) if found is None else found
        whole = self._alike(found.mask)
        if whole is None:
            return None
        if found.mask is not part and not same_size(
            to_expr(value(part).shape[0]), size_of(self.row)
        ):
            return None
        dim = whole[found.dim]
        if choices is not None:
            try:
                dim, _ = split_dim(dim, (quotient(size_of(dim), choices), choices))
            except Unproven:
                return None
        self.interior.update((*found.passed, *made))
        return (dim,)

    def _alike(self, node: Node) -> Dims | None:
        """The axes of the mask, or of another spelling of it that is true in the same order."""
        if node is self.mask or self.mask is None:
            return self.mask_dims if node is self.mask else None
        try:
            own = regroup(self.mask_dims, value(node).shape)
        except Unproven:
            return None
        one, other = told(self.view, node, own), told(self.view, self.mask, self.mask_dims)
        if one is None or other is None:
            return None
        names = dict(zip(leaves((one.choices,)), leaves((other.choices,)), strict=False))
        indices = replace(one.indices, dims=renamed(one.indices.dims, names))
        renamed_one = replace(one, indices=indices, choices=leaves(renamed((one.choices,), names)))
        return own if renamed_one == replace(other, choices=leaves((other.choices,))) else None


def _is_whole(dims: Dims | None, source: Node) -> TypeGuard[Dims]:
    """Whether a tensor has these axes, and is no longer than the mask."""
    if dims is None:
        return False
    sizes = zip(dims, value(source).shape, strict=True)
    return all(same_size(size_of(dim), to_expr(size)) for dim, size in sizes)


def mask_of(view: GraphView, index: Sequence[Any]) -> Node | None:
    """The mask at whose positions an index reads or writes."""
    for part in index:
        if not is_tensor(part):
            continue
        part = tokens_of(view, part)[0]
        found = coordinate(view, part)
        if found is not None:
            return found.mask
        if value(part).dtype is torch.bool:
            return part
    return None


def coordinate(view: GraphView, node: Node) -> Coordinate | None:
    """What a tensor of positions is, in any spelling of `where` and `nonzero`."""
    if not is_tensor(node) or value(node).ndim != 1:
        return None
    dims: Dims = fresh(value(node).shape, "r")
    passed: list[Node] = []
    for _ in range(_LIMIT):
        if view.is_written(node):
            return None
        source = node.args[0] if node.args else None
        if gives_positions(node) and len(dims) == 2 and is_tensor(source):
            rest = leaves(dims[1:])
            found = (source, 0) if not rest else None
            return found and Coordinate(found[0], found[1], (*passed, node))
        if gives_positions(source) and getattr(node.target, "__name__", "") == "getitem":
            assert isinstance(source, Node)
            if isinstance(value(source), (tuple, list)) and type(node.args[1]) is int:
                mask = source.args[0] if source.args else source.kwargs.get("condition")
                number = node.args[1] % len(value(source))
                known = is_tensor(mask)
                return Coordinate(mask, number, (*passed, node, source)) if known else None
        passed.append(node)
        step = _positions(view, node, dims)
        if step is None:
            return None
        node, dims, number = step
        if number is not None:
            passed.append(node)
            mask = node.args[0] if node.args else None
            matrix = gives_positions(node) and is_tensor(mask) and is_tensor(node)
            return Coordinate(mask, number, tuple(passed)) if matrix else None  # type: ignore[arg-type]
    return None


def _positions(view: GraphView, node: Node, dims: Dims) -> tuple[Node, Dims, int | None] | None:
    """A view of positions, or one column of them with its number."""
    op = view.op(node)
    try:
        if op.kind is Kind.VIEW and not op.inplace:
            source, pulled = pull_view(op, node, dims)
            return source, resolve(pulled), None
        cut = column(view, Place(node, dims))
    except Unproven:
        return None
    if cut is None or len(cut[1]) != 2:
        return None
    return cut[0], cut[1], cut[3]


def gives_positions(node: Any) -> bool:
    """Whether a node finds where a mask is true."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    if name not in _POSITIONS:
        return False
    given = [*node.args, *(v for k, v in node.kwargs.items() if k != "as_tuple")]
    return len(given) == 1


def sizes_of(view: GraphView, interior: set[Node], most: Size) -> set[Node]:
    """Nodes that only tell how many rows there are, or assert what always holds of that.

    Args:
        view: the graph.
        interior: of a region.
        most: elements of a mask.
    """
    found: set[Node] = set()
    for node in interior:
        for user in node.users:
            if user not in interior and user not in found:
                found |= _asserted(user, interior, most) or set()
    return found


def same_sizes(interior: set[Node]) -> set[Node]:
    """Nodes that assert of two tensors with rows of one mask that they have equally many.

    Args:
        interior: nodes with rows of one mask alone.
    """
    sizes = {u for node in interior for u in node.users if name_of(u).startswith("sym_size")}
    found: set[Node] = set()
    for size in sizes:
        for user in size.users:
            both = user.target is operator.eq and sizes.issuperset(user.all_input_nodes)
            rows = both and all(n.args[1:] == (0,) for n in user.all_input_nodes)
            if rows and len(user.args) == 2 and _is_asserted(user):
                found |= {user, *user.users, *user.all_input_nodes}
    return found


def _is_asserted(node: Node) -> bool:
    names = {str(getattr(u.target, "__name__", u.target)).partition(".")[0] for u in node.users}
    return names <= {"_assert_scalar"}


def _asserted(node: Node, interior: set[Node], most: Size) -> set[Node] | None:
    """A node and all that it is read by, if that ends in such assertions or in the interior."""
    if _always_holds(node, most):
        return {node, *node.users}
    is_size = isinstance(value(node), torch.SymInt)
    if not is_size and not (node.args and gives_positions(node.args[0])):
        return None
    found = {node}
    for user in node.users:
        if user in interior:
            continue
        inner = _asserted(user, interior, most)
        if inner is None:
            return None
        found |= inner
    return found


def _least(size: Any) -> int:
    """What a size is no less than: that of `bincount` no less than it was asked for."""
    if not isinstance(size, Node) or not name_of(size).startswith("sym_size"):
        return 0
    counted = size.args[0]
    return bins_of(counted) or 0 if is_tensor(counted) and value(counted).ndim == 1 else 0


def _always_holds(node: Node, most: Size) -> bool:
    """`size >= 0` or `size <= most`, which is asserted and nothing else; users' assertions may say
    more."""
    if len(node.args) < 2 or type(node.args[1]) is not int:
        return False
    size, bound = node.args[0], node.args[1]
    pieces = len(size.args) if isinstance(size, Node) and size.target is held else None
    if node.target is operator.ge:
        holds = bound <= (_least(size) if pieces is None else 1)
    elif node.target is operator.le:
        known = most if pieces is None else pieces
        holds = isinstance(known, int) and bound >= known
    else:
        return False
    return holds and _is_asserted(node)
