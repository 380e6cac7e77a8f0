"""The element of a tensor at a symbolic position: masks whose only inputs are sizes.

The walk goes up from a tensor with one index expression a dimension, as `arange`s, comparisons,
views, slices and gathers make a mask, and ends in `positional` values. Nothing is simplified
beyond expanding polynomials, and the number of steps is limited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.fx import Node

from ..torch_private import to_expr
from .axes import Axis, Dims, Unproven, leaves, resolve, same_size, size_of
from .fold import Folder
from .index_rules import RULES, ZERO, Index, is_one, size_expr
from .ops import Kind, Op, is_tensor, value
from .positional import Value, Whole, at_least_zero, constant, pointwise
from .pull import pull_view

MAX_STEPS = 256
MAX_DEPTH = 60


class IndexReader:
    """Reads elements of tensors of one graph at symbolic positions.

    Attributes:
        sizes: how many positions every index symbol has.
    """

    def __init__(self, folder: Folder) -> None:
        self.view, self.folder = folder.view, folder
        self.sizes: dict[sympy.Symbol, sympy.Expr] = {}
        self._symbols: dict[Axis, sympy.Symbol] = {}
        self._known: dict[tuple[Node, Index], Value] = {}
        self._depth = 0

    def symbol(self, axis: Axis) -> sympy.Symbol:
        """The position along an axis."""
        if axis not in self._symbols:
            self._symbols[axis] = self._fresh(axis.size)
        return self._symbols[axis]

    def element(self, node: Node, dims: Dims, fixed: Mapping[Axis, int]) -> Value:
        """The element of a tensor with these axes at the positions of the axes' symbols.

        Raises:
            Unproven: it is not known to be exact.
        """
        index = []
        for dim in resolve(dims):
            at = [sympy.Integer(fixed[a]) if a in fixed else self.symbol(a) for a in dim]
            index.append(_row_major(dim, at))
        return self.at(node, tuple(index))

    def at(self, node: Node, index: Index, reader: Node | None = None) -> Value:
        """The element at an index, one expression for each dimension.

        Args:
            node: the tensor.
            index: where.
            reader: who reads it; without one it is read after the end of the graph.
        """
        if self.view.is_written(node, reader):
            raise Unproven("a tensor that is written to")
        key = (node, index)
        if key not in self._known:
            if len(self._known) >= MAX_STEPS or self._depth >= MAX_DEPTH:
                raise Unproven("a mask made in too many steps")
            self._depth += 1
            try:
                self._known[key] = self._compute(node, index)
            finally:
                self._depth -= 1
        return self._known[key]

    def _compute(self, node: Node, index: Index) -> Value:
        example = value(node)
        if not isinstance(example, torch.Tensor):
            return Whole(size_expr(node))
        if all(isinstance(s, int) and s == 1 for s in example.shape):
            found = self.folder.tensor(node)
            if found is not None:
                return constant(found)
        op = self.view.op(node)
        if op.kind is Kind.POINTWISE:
            look = lambda n: self.at(n, self._operand(node, n, index), node)  # noqa: E731
            return pointwise(op, node, look, example.dtype, self.sizes)
        if op.inplace:
            raise Unproven("an operator that works in place")
        if op.kind is Kind.VIEW:
            return self._view(op, node, index)
        if op.kind is Kind.SLICE and op.name == "getitem":
            return self._getitem(op, node, index)
        name = str(getattr(node.target, "__name__", node.target))
        known = node.op == "call_method" or getattr(torch, name, None) is node.target
        rule = RULES.get(name) if known else None
        if rule is None:
            raise Unproven(f"no rule for `{node.name}`")
        return rule(self, node, index)

    def _operand(self, node: Node, source: Node, index: Index) -> Index:
        if not is_tensor(source):
            return ()
        return aligned(index, value(node).shape, value(source).shape)

    def _view(self, op: Op, node: Node, index: Index) -> Value:
        shape = value(node).shape
        if value(op.args["input"]).dtype is not value(node).dtype:
            raise Unproven("a view as another dtype")
        axes = [() if is_one(n) else (Axis(to_expr(n)),) for n in shape]
        at = {a: i for dim, i in zip(axes, index, strict=True) for a in dim}
        source, dims = pull_view(op, node, tuple(axes))
        if not set(leaves(dims)) <= set(at):
            raise Unproven("a reshape that cuts a dimension")
        place = tuple(_row_major(d, [at[a] for a in d]) for d in resolve(dims))
        return self.at(source, place, node)

    def _getitem(self, op: Op, node: Node, index: Index) -> Value:
        source = op.args["input"]
        sizes = list(value(source).shape)
        parts = full_index(op.args["index"], len(sizes))
        gathered = [i for i, p in enumerate(parts) if is_tensor(p)]
        if gathered:
            if gathered != list(range(gathered[0], gathered[-1] + 1)):
                raise Unproven("gathers with something between them")
            if not all(is_tensor(p) or p is None or isinstance(p, slice) for p in parts):
                raise Unproven("a gather next to a single position")
        at: list[sympy.Expr] = []
        cursor = 0
        for place, part in enumerate(parts):
            if part is None:
                cursor += 1
            elif isinstance(part, slice):
                at.append(index[cursor] + self._start(part, sizes[len(at)]))
                cursor += 1
            elif not is_tensor(part):
                start = self._start(slice(part, None), sizes[len(at)])
                at.append(start)
            elif place == gathered[0]:
                tensors = [parts[i] for i in gathered]
                rank = max(value(t).ndim for t in tensors)
                span = slice(cursor, cursor + rank)
                shape = value(node).shape[span]
                at.extend(self._gather(t, index[span], shape, node) for t in tensors)
                cursor += rank
        if cursor != len(index) or len(at) != len(sizes):
            raise Unproven("an index of unclear rank")
        return self.at(source, tuple(sympy.expand(i) for i in at), node)

    def _gather(self, tensor: Node, index: Index, shape: Sequence[Any], reader: Node) -> sympy.Expr:
        if value(tensor).dtype not in (torch.int32, torch.int64):
            raise Unproven("an index that is no position")
        found = self.at(tensor, aligned(index, shape, value(tensor).shape), reader)
        if not isinstance(found, Whole) or not at_least_zero(found.expr, self.sizes):
            raise Unproven("an index that may count from the end")
        return found.expr

    def _start(self, part: slice, size: Any) -> sympy.Expr:
        """First position of a slice; where it lies beyond the end the result has no elements."""
        if part.step is not None and (isinstance(part.step, Node) or part.step != 1):
            raise Unproven("a slice with a step")
        start = ZERO if part.start is None else size_expr(part.start)
        if at_least_zero(start, self.sizes):
            return start
        start = to_expr(size) + start
        if at_least_zero(start, self.sizes) and at_least_zero(to_expr(size) - start, self.sizes):
            return start
        raise Unproven("a slice from an unclear position")

    def _fresh(self, size: Any) -> sympy.Symbol:
        symbol = sympy.Symbol(f"i{len(self.sizes)}", integer=True, nonnegative=True)
        self.sizes[symbol] = sympy.sympify(size)
        return symbol

    def along(self, node: Node, dim: int, index: Index, reader: Node) -> tuple[sympy.Symbol, Value]:
        """The element at any position of one dimension."""
        symbol = self._fresh(to_expr(value(node).shape[dim]))
        return symbol, self.at(node, (*index[:dim], symbol, *index[dim + 1 :]), reader)


def aligned(index: Index, shape: Sequence[Any], wanted: Sequence[Any]) -> Index:
    """Where a tensor of shape `wanted`, broadcast to `shape`, is read at `index`."""
    offset = len(shape) - len(wanted)
    if offset < 0:
        raise Unproven("an operand has more dimensions than the result")
    out = []
    for i, have, want in zip(index[offset:], shape[offset:], wanted, strict=True):
        if not is_one(want) and not same_size(to_expr(want), to_expr(have)):
            raise Unproven("an operand of another size than the result")
        out.append(ZERO if is_one(want) else i)
    return tuple(out)


def _row_major(axes: Sequence[Axis], at: Sequence[sympy.Expr]) -> sympy.Expr:
    total: Any = ZERO
    for position, axis in enumerate(axes):
        total = total + at[position] * size_of(axes[position + 1 :])
        if axis.parts:
            raise Unproven("an axis that was split")
    return sympy.expand(total)


def full_index(raw: Any, rank: int) -> list[Any]:
    """One part for every dimension of the tensor, and None for every new one."""
    parts = list(raw) if isinstance(raw, tuple) else [raw]
    for part in parts:
        known = part is None or part is Ellipsis or isinstance(part, (int, slice, Node))
        if not known or isinstance(part, bool):
            raise Unproven("an index of an unusual kind")
    used = sum(1 for p in parts if p is not None and p is not Ellipsis)
    dots = [i for i, p in enumerate(parts) if p is Ellipsis]
    place = dots[0] if dots else len(parts)
    if len(dots) > 1 or used > rank:
        raise Unproven("an index of unclear rank")
    return [*parts[:place], *([slice(None)] * (rank - used)), *parts[place + 1 :]]
