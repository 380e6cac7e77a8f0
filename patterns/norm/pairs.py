"""Two parts of a tensor, halves or neighbours, as the members of pairs: what a rotation reads.

    what `parts` reads of two equal parts, view_as_complex                     take one member
    cat, stack, view_as_real, out[..., ::2] = and out[..., 1::2] =             have both again
    two members of a tensor that are written to in place                       as well
    one member times a row, or a column, of a matrix for each pair             as well
    a sum over both members, each times an element of such a matrix            is of both

Nothing is assumed of what is done between: each member of a result is a program of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, leaves, resolve, same_size, split_dim
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView
from fuser.torch_private import to_expr

from ..parts import LISTS, Part, part_at, part_of
from .sections import Row, Sections, row_of, rows_around
from .statistic import dims_of

_NEW = (torch.empty_like, torch.zeros_like, "new_empty", "new_zeros")


@dataclass(frozen=True)
class Both:
    """Two tensors, one of each member, as one.

    Attributes:
        parts: the two.
        dim: of the one.
        new: the dimension has a pair and nothing else.
        near: members are neighbours, not halves.
        writes: where they were written into the one.
    """

    parts: tuple[Node, Node]
    dim: int
    new: bool = False
    near: bool = False
    writes: tuple[Node, ...] = ()


class Pair:
    """The axis of two elements that stands for the member, in whatever has both.

    Attributes:
        axis: None before anything told which it is.
        column: that of what is added up over both members, of a matrix for each pair.
        sections: of a row that was put together.
    """

    def __init__(self) -> None:
        self.axis: Axis | None = None
        self.column = Axis(2, "column")
        self.sections: Sections | None = None

    @property
    def section(self) -> Axis | None:
        """That of the sections of a row."""
        return None if self.sections is None else self.sections.axis

    @property
    def is_whole(self) -> bool:
        """Whether both members of a pair are in a section, if there are sections."""
        return self.axis is not None and not (self.sections and self.sections.apart)

    @property
    def axes(self) -> list[Axis]:
        """That of sections, if there are any, and that of members, if a section has both."""
        own = self.axis if self.is_whole else None
        return [axis for axis in (self.section, own) if axis is not None]

    @property
    def count(self) -> int:
        """How many sections there are."""
        return 1 if self.sections is None else self.sections.count

    @property
    def programs(self) -> list[tuple[int | None, int | None]]:
        """The members of one result, each with its section."""
        if self.axis is None:
            return [(None, None)]
        return [(0, None), (1, None)] if self.sections is None else [*self.sections.programs]

    def has(self, dims: Dims) -> bool:
        return self.axis is not None and self.axis in leaves(dims)

    def has_all(self, dims: Dims) -> bool:
        """Whether there are all members of all sections."""
        return {*self.axes} <= {*leaves(dims)}

    def apart(self, of: Part, dims: Dims) -> Dims:
        """Axes of the source, given those of one member.

        Raises:
            Unproven: it is a part of a part.
        """
        if self.has(dims):
            raise Unproven("pairs of pairs")
        self.axis = self.axis or Axis(2, "pair")
        return of.whole(dims, self.axis)

    def together(self, of: Both, dims: Dims) -> Dims:
        """Axes of each part, given those of both.

        Raises:
            Unproven: they are pairs of something else.
        """
        dim, rest = dims[of.dim], ()
        if not of.new:
            half = to_expr(value(of.parts[0]).shape[of.dim])
            first, second = split_dim(dim, (half, 2) if of.near else (2, half))
            dim, rest = (second, first) if of.near else (first, second)
        self.require(dim)
        return (*dims[: of.dim], *(() if of.new else (rest,)), *dims[of.dim + 1 :])

    def cut(self, row: Row, dims: Dims) -> Dims:
        """Axes of a part of a row that was changed, given those of the row.

        Raises:
            Unproven: rows have other parts already.
        """
        self.sections = known = self.sections or Sections(row, dims[row.dim])
        same = resolve((known.along,)) == resolve((dims[row.dim],))
        if not same or known.row.cut != row.cut:
            raise Unproven("sections of other rows")
        return (*dims[: row.dim], resolve((known.part,))[0], *dims[row.dim + 1 :])

    def whole(self, row: Row, dims: Dims) -> Dims:
        """Axes of a row, given those of a part of it.

        Raises:
            Unproven: the row was not put together, or a part is another arrangement of what it was.
        """
        found, own = self.sections, resolve((dims[row.dim],))[0]
        if found is None or found.axis in leaves(dims):
            raise Unproven("sections of sections")
        if found.row.even:
            along = (*([found.axis] if found.axis else []), *own)
        elif own == resolve((found.part,))[0]:
            along = resolve((found.along,))[0]
        else:
            raise Unproven("a part of a row that is a rearranged copy of what it was")
        return (*dims[: row.dim], along, *dims[row.dim + 1 :])

    def spread(self, dim: int, dims: Dims) -> Dims:
        """Axes of what is added up over a dimension, given those of the sum.

        Raises:
            Unproven: it is a sum of such sums.
        """
        if self.column in leaves(dims):
            raise Unproven("sums over pairs of pairs")
        return (*dims[:dim], (self.column,), *dims[dim:])

    def of_column(self, dims: Dims) -> Dims:
        """Axes of something that has the members which are added up, and no others."""
        axis = self.axis = self.axis or Axis(2, "pair")
        return tuple(tuple(axis if a is self.column else a for a in dim) for dim in resolve(dims))

    def require(self, dim: Dim) -> None:
        """That a dimension stands for the member."""
        (dim,) = resolve((dim,))
        if len(dim) != 1 or dim[0] is not (self.axis or dim[0]):
            raise Unproven("what is put together are no members of pairs")
        self.axis = dim[0]


def joins(view: GraphView, node: Node, inside: Sequence[Node]) -> bool:
    """Whether an operator takes members of pairs apart, multiplies them as complex numbers, or puts
    them together again."""
    op = view.op(node)
    if op.inplace:
        return False
    if row_of(view, node) is not None:
        return set(op.args["tensors"]) <= {*inside}
    if rows_around(view, node):
        return True
    if op.name in LISTS and any(rows_around(view, part) for part in node.users):
        return True
    if op.name in LISTS:
        found = value(node)
        return isinstance(found, (tuple, list)) and len(found) == 2
    if op.name in ("view_as_complex", "view_as_real") or is_product(op, node):
        return True
    if added(view, node) is not None:
        return True
    if node.target is operator.setitem:
        return written(view, node.args[0]) is not None
    found = both(view, node)
    return member(view, node) is not None or (found is not None and set(found.parts) <= {*inside})


def widens(view: GraphView, node: Node, inside: Collection[Node]) -> bool:
    """Whether a pointwise operator has two elements for each of what it reads from the inside: from
    the outside come two numbers for that."""
    op = view.op(node)
    if op.kind is not Kind.POINTWISE or op.inplace or not is_tensor(node):
        return False
    read = [n for n in node.all_input_nodes if n in inside]
    return bool(read) and all(_is_one_of_two(n, node) for n in read)


def _is_one_of_two(part: Node, node: Node) -> bool:
    """Whether shapes are the same, but for one dimension of a single element where the other has
    two."""
    own, whole = value(part).shape, value(node).shape
    sizes = [*zip(map(to_expr, own), map(to_expr, whole), strict=len(own) == len(whole))]
    differ = [pair for pair in sizes if not same_size(*pair)]
    return len(own) == len(whole) and differ == [(1, 2)]


def is_product(op: Op, node: Node) -> bool:
    """Of complex numbers."""
    factors = [op.args.get("input"), op.args.get("other")]
    return op.name == "mul" and all(
        is_tensor(n) and value(n).dtype is torch.complex64 for n in (node, *factors)
    )


def added(view: GraphView, node: Node) -> int | None:
    """The dimension of two elements over which a node adds up, and which it has no more."""
    op = view.op(node)
    source = op.args.get("input")
    if op.name != "sum" or not is_tensor(node) or not is_tensor(source):
        return None
    dims = dims_of(op, value(source).ndim)
    if dims is None or len(dims) != 1 or op.args.get("keepdim", False) is not False:
        return None
    same = value(source).dtype is value(node).dtype and node.kwargs.get("dtype") is None
    return dims[0] if same and same_size(to_expr(value(source).shape[dims[0]]), 2) else None


def member(view: GraphView, node: Node) -> Part | None:
    """Of what a node is a member."""
    part = part_of(view, node)
    return part if part is not None and part.count == 2 else None


def is_part(view: GraphView, node: Node) -> bool:
    """Whether a node takes members apart and does nothing else."""
    taken = member(view, node) is not None or bool(rows_around(view, node))
    return taken or view.op(node).name in LISTS


def both(view: GraphView, node: Node) -> Both | None:
    """What two tensors a node puts together, one for each member."""
    op = view.op(node)
    parts, dim = op.args.get("tensors"), op.args.get("dim", 0)
    if op.name not in ("cat", "stack") or not is_tensor(node) or not isinstance(dim, int):
        return None
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not all(map(is_tensor, parts)):
        return None
    if not _has_shape(parts[0], value(parts[1]).shape):
        return None
    return Both((parts[0], parts[1]), dim % value(node).ndim, op.name == "stack")


def written(view: GraphView, node: Any) -> Both | None:
    """What two tensors were written into a new one, one for each member, before anybody read it; or
    were made of its members in place."""
    if not is_tensor(node):
        return None
    if not is_new(node):
        return _overwritten(view, node)
    writes = [u for u in node.users if u.target is operator.setitem and u.args[0] is node]
    parts = [part for write in writes if (part := part_at(node, write.args[1])) is not None]
    if len(writes) != 2 or len(parts) != 2 or parts[0].count != 2 or not parts[0].kept:
        return None
    if parts[0].cut != parts[1].cut or parts[0].index == parts[1].index:
        return None
    last = max(view.order[write] for write in writes)
    if any(view.order[user] < last for user in node.users if user not in writes):
        return None
    given = [write.args[2] for write in writes]
    whole, dim = value(node), parts[0].dim
    half = (*whole.shape[:dim], whole.shape[dim] // 2, *whole.shape[dim + 1 :])
    tensors = [n for n in given if is_tensor(n) and _has_shape(n, half)]
    if len(tensors) != 2:
        return None
    first, second = tensors if parts[0].index == 0 else tensors[::-1]
    return Both((first, second), dim, near=parts[0].in_turn, writes=tuple(writes))


def is_new(node: Node) -> bool:
    """Whether a tensor is nothing but memory that is written to."""
    return node.target in _NEW


def _overwritten(view: GraphView, node: Node) -> Both | None:
    """What two operators made in place of the members of a tensor, which nothing else read."""
    writes = [w for u in node.users for w in u.users if view.op(w).inplace]
    parts = [part for w in writes if (part := _target(view, w)) is not None]
    if len(writes) != 2 or len(parts) != 2 or view.op(node).kind is not Kind.POINTWISE:
        return None
    first = view.sharing[view.storages[node]][0]
    if first is not node or any(part.source is not node or not part.kept for part in parts):
        return None
    if parts[0].cut != parts[1].cut or parts[0].index == parts[1].index:
        return None
    last = max(view.order[write] for write in writes)
    before = {view.op(write).args["input"] for write in writes}
    if any(view.order[user] < last for user in node.users if user not in before):
        return None
    ordered = writes if parts[0].index == 0 else writes[::-1]
    return Both((ordered[0], ordered[1]), parts[0].dim, near=parts[0].in_turn, writes=(*writes,))


def written_to(view: GraphView, node: Node) -> Both | None:
    """What is made in place of both members of a tensor, of which a node is one."""
    for write in node.users:
        part = _target(view, write)
        if part is not None and view.op(write).args["input"] is node:
            return written(view, part.source)
    return None


def is_write(view: GraphView, node: Node) -> bool:
    """Whether a node makes one member of a tensor in place, and another node makes the other."""
    given = view.op(node).args.get("input")
    if node.target is operator.setitem:
        return True
    whole = written_to(view, given) if view.op(node).inplace and is_tensor(given) else None
    return whole is not None and node in whole.writes


def _target(view: GraphView, write: Node) -> Part | None:
    """The member that a pointwise operator writes to in place, and that only it reads."""
    op = view.op(write)
    given = op.args.get("input")
    if op.kind is not Kind.POINTWISE or not op.inplace or not is_tensor(given):
        return None
    return member(view, given) if [*given.users] == [write] else None


def _has_shape(node: Node, shape: Sequence[Any]) -> bool:
    own = value(node).shape
    sizes = zip(own, shape, strict=True) if len(own) == len(shape) else [(0, 1)]
    return all(same_size(to_expr(a), to_expr(b)) for a, b in sizes)
