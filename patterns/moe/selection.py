"""Which tokens an expert of a loop is given: positions at which a mask is true.

b, k = torch.where(indices == e)        k, b = torch.where(one_hot(indices)[..., e].T)
b = (choice == e).nonzero().squeeze(-1) x[choice == e]

A row of the expert stands for one of these positions, in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, fresh, leaves, resolve, size_of
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView

from .branches import column
from .routing import Routing
from .space import CASTS, COPIES, Place, Space

_LIMIT = 64
_WHOLE = {torch.int32, torch.int64}
_POSITIONS = {"nonzero", "argwhere", "where"}
_ASSERTIONS = {"_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size", "_check"}


@dataclass(frozen=True)
class Coordinate:
    """Positions at which a mask is true, along one of its dimensions."""

    mask: Node
    dim: int
    passed: tuple[Node, ...]


@dataclass(frozen=True)
class Chosen:
    """Which expert a mask belongs to.

    Attributes:
        indices: which expert each choice of each token is.
        expert: where the mask is true, they are this one.
        classes: how many there are, if the mask tells.
        kept: what else must not be zero at the expert that a choice is, with an axis of experts.
    """

    indices: Place
    expert: int
    classes: int | None = None
    kept: Place | None = None


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
        return super().token_axes | set(leaves((self.row,)))

    def locate(self, node: Node, dims: Dims) -> Place:
        """What a tensor is a view of, each row read at its token and choice.

        Raises:
            Unproven: it is read elsewhere.
        """
        inner, own = self._peel(node, dims)
        if set(leaves(own)) & set(leaves((self.row,))) and not self.is_written(inner):
            source = self._picked(self.view.op(inner), own)
            if source is not None:
                while node is not inner:
                    self.interior.add(node)
                    node = self.view.op(node).args["input"]
                self.interior.add(inner)
                return self.locate(*source)
        return super().locate(inner, own)

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
        return None if whole is None else (source, whole)

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
        if part is self.mask:
            return self.mask_dims
        found = coordinate(self.view, part)
        if found is None or found.mask is not self.mask:
            return None
        self.interior.update(found.passed)
        return (self.mask_dims[found.dim],)


def mask_of(view: GraphView, index: Sequence[Any]) -> Node | None:
    """The mask at whose positions an index reads or writes."""
    for part in index:
        if not is_tensor(part):
            continue
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
        source = node.args[0] if node.args else None
        if _gives_positions(view, node) and len(dims) == 2 and is_tensor(source):
            rest = leaves(dims[1:])
            found = (source, 0) if not rest else None
            return found and Coordinate(found[0], found[1], (*passed, node))
        if _gives_positions(view, source) and getattr(node.target, "__name__", "") == "getitem":
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
            matrix = _gives_positions(view, node) and is_tensor(mask) and is_tensor(node)
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


def _gives_positions(view: GraphView, node: Any) -> bool:
    """Whether a node finds where a mask is true."""
    if not isinstance(node, Node) or node.op not in ("call_function", "call_method"):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    if name not in _POSITIONS:
        return False
    given = [*node.args, *(v for k, v in node.kwargs.items() if k != "as_tuple")]
    return len(given) == 1


def chosen(view: GraphView, node: Node, dims: Dims) -> Chosen | None:
    """Which expert a mask is of, each of whose elements is a choice of a token."""
    compared = False
    for _ in range(_LIMIT):
        if _is_written(view, node):
            return None
        op = view.op(node)
        if op.kind is Kind.VIEW and not op.inplace:
            node, dims = pull_view(op, node, dims)
        elif op.name in (*COPIES, *CASTS, "bool", "int", "long") and is_tensor(op.args["input"]):
            node = op.args["input"]
        elif op.name in ("ne", "gt") and op.args.get("other") == 0 and not compared:
            node, compared = op.args["input"], True
        elif op.name == "eq" and not compared:
            found = _equal(view, op, dims)
            if found is not None or op.args.get("other") != 1:
                return found
            node, compared = op.args["input"], True
        else:
            return _hot(view, node, dims)
        dims = resolve(dims)
    return None


def _equal(view: GraphView, op: Op, dims: Dims) -> Chosen | None:
    """`indices == e`."""
    sides = [op.args.get("input"), op.args.get("other")]
    tensors, numbers = [s for s in sides if is_tensor(s)], [s for s in sides if type(s) is int]
    if len(tensors) != 1 or len(numbers) != 1 or value(tensors[0]).dtype not in _WHOLE:
        return None
    if _hot(view, tensors[0], dims) is not None:
        return None
    return Chosen(_peeled(view, tensors[0], dims), numbers[0])


def _hot(view: GraphView, node: Node, dims: Dims) -> Chosen | None:
    """One column of `one_hot(indices)`."""
    place = _cast(view, node, dims)
    cut = None if place is None else column(view, place)
    place = None if cut is None else _cast(view, cut[0], cut[1])
    if cut is None or place is None:
        return None
    indices = Routing(view, cut[2]).support(place.node, place.dims)
    classes = size_of(cut[2])
    if indices is None or not isinstance(classes, int):
        return None
    if set(leaves(indices.dims)) - set(leaves(place.dims)):
        return None  # of several choices one mask
    kept = None
    if view.op(place.node).name != "one_hot":
        kept = Place(place.node, place.dims, cut[2])
        if not _is_mask(view, place.node):
            return None
    return Chosen(_peeled(view, indices.node, indices.dims), cut[3], classes, kept)


def _is_mask(view: GraphView, node: Node, depth: int = 0) -> bool:
    """Whether all elements of a tensor are zero or one, so that no cast makes them others."""
    if value(node).dtype is torch.bool:
        return True
    op = view.op(node)
    if op.name == "one_hot":
        return True
    passed = op.kind is Kind.VIEW or op.name in (*COPIES, *CASTS, "int", "long", "mul")
    inputs = node.all_input_nodes
    whole = passed and depth < _LIMIT and all(map(is_tensor, inputs)) and len(inputs) <= 2
    plain = op.name != "mul" or len(inputs) == 2
    return whole and plain and all(_is_mask(view, n, depth + 1) for n in inputs[:2])


def _cast(view: GraphView, node: Node, dims: Dims) -> Place | None:
    """A tensor of zeros and ones without its views and casts."""
    for _ in range(_LIMIT):
        op = view.op(node)
        if _is_written(view, node):
            return None
        if op.kind is Kind.VIEW and not op.inplace:
            node, dims = pull_view(op, node, dims)
        elif op.name in (*COPIES, *CASTS, "bool", "int", "long"):
            node = op.args["input"]
        else:
            break
    return Place(node, resolve(dims))


def _peeled(view: GraphView, node: Node, dims: Dims) -> Place:
    """Indices without their views and copies, so that two spellings are one tensor."""
    for _ in range(_LIMIT):
        op = view.op(node)
        if _is_written(view, node):
            break
        if op.kind is Kind.VIEW and not op.inplace:
            try:
                node, dims = pull_view(op, node, dims)
            except Unproven:
                break
        elif op.name in COPIES or (
            op.name in ("to", "int", "long")
            and {value(node).dtype, value(op.args["input"]).dtype} <= _WHOLE
        ):
            node = op.args["input"]
        else:
            break
    return Place(node, resolve(dims))


def _is_written(view: GraphView, node: Node) -> bool:
    return view.mutated_between(node, view.order[node] + 1, len(view.order)) is not None


def sizes_of(view: GraphView, interior: set[Node]) -> set[Node]:
    """Nodes that only tell, or assert, how many rows there are, and are read by no other."""
    found: set[Node] = set()
    for node in interior:
        for user in node.users:
            if user not in interior and user not in found:
                found |= _asserted(view, user, interior) or set()
    return found


def _asserted(view: GraphView, node: Node, interior: set[Node]) -> set[Node] | None:
    """A node and all that it is read by, if that ends in assertions or in the interior."""
    name = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    if name in _ASSERTIONS:
        return {node}
    is_size = isinstance(value(node), (torch.SymInt, torch.SymBool, torch.SymFloat))
    if not is_size and not (node.args and _gives_positions(view, node.args[0])):
        return None
    found = {node}
    for user in node.users:
        if user in interior:
            continue
        inner = _asserted(view, user, interior)
        if inner is None:
            return None
        found |= inner
    return found
