"""A trained bias that depends on positions only through j - i: its gradient through one row.

The producers of the bias are applied to Sq + Sk - 1 positions, one on each diagonal, instead of all
Sq x Sk, and `fuser::along_diagonals` lays the numbers out. So the gradient of T5's table is a sum
over diagonals, which is a reduction, and then a scatter of a row; scattered from every score, most
of it lands on a few entries, one addition after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fuser.builder import Builder
from fuser.graph.axes import Axis, Dims, Unproven, leaves, resolve, size_of
from fuser.graph.dependence import DependenceReader
from fuser.graph.fold import Folder
from fuser.graph.index_rules import is_one
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.pattern import Call, Operand
from fuser.swallowed import swallow

from .relative import edge_positions, is_along_diagonals

FEWEST = 4
"""Scores for each diagonal, from which a row takes less than the whole."""


@torch.library.triton_op("fuser::along_diagonals", mutates_args=())
def along_diagonals(row: Tensor, queries: int) -> Tensor:
    """`(B, H, Sq + Sk - 1)` -> `(B, H, Sq, Sk)`: element `(i, j)` is `row[j - i + Sq - 1]`."""
    keys = row.shape[-1] - queries + 1
    return row.unfold(-1, keys, 1).flip(-2).contiguous()


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.fuser.sum_of_diagonals(grad), None


@torch.library.triton_op("fuser::sum_of_diagonals", mutates_args=())
def sum_of_diagonals(scores: Tensor) -> Tensor:
    """`(B, H, Sq, Sk)` -> `(B, H, Sq + Sk - 1)`: the sum over all `(i, j)` of one `j - i`.

    Padded by Sq and cut after one element less, each row stands one further right than the last.
    """
    *own, queries, keys = scores.shape
    wide = F.pad(scores.flip(-2), (0, queries)).reshape(*own, queries * (keys + queries))
    skewed = wide[..., :-queries].reshape(*own, queries, keys + queries - 1)
    return skewed.sum(-2, dtype=torch.float32).to(scores.dtype)


torch.library.register_autograd("fuser::along_diagonals", _backward)


class Diagonals:
    """One captured bias of a call.

    Attributes:
        operand: the bias, `(B, H, Sq, Sk)`.
    """

    def __init__(self, call: Call, name: str, folder: Folder) -> None:
        self.operand: Operand = call.operands[name]
        self.view, self.reader = folder.view, DependenceReader(folder)
        self._read: set[Node] = set()

    def applies(self) -> bool:
        """Whether the bias is trained, relative, and nothing in the way of computing it anew."""
        example = value(self.operand.node)
        if not (torch.is_grad_enabled() and isinstance(example, Tensor) and example.requires_grad):
            return False
        try:
            return self._is_relative() and self._follow(self.operand.node, self._dims)
        except Exception as error:  # what cannot be followed is merely no special case
            swallow(error)
            return False

    def is_alive(self) -> bool:
        """Whether what the bias is made from is still there."""
        return not any(node._erased for node in self._read)

    def emit(self, builder: Builder) -> Node:
        """The bias, laid out from a row of numbers."""
        rows, keys = self._sizes
        positions = edge_positions(builder, rows, keys, value(self.operand.node).device)
        at = dict(zip(self._axes, positions, strict=True))
        walk = _Emission(self, builder, at, Axis(rows + keys - 1))
        row, dims = walk.visit(self.operand.node, self._dims)
        if value(row).dtype != value(self.operand.node).dtype:  # autocast is another one here
            return builder.operand(self.operand)
        row = builder.arrange(row, dims, (*resolve(self.operand.target[:2]), (walk.along,)))
        if self.operand.dtype is not None and value(row).dtype != self.operand.dtype:
            row = builder.method("to", row, dtype=self.operand.dtype)
        return builder.call(torch.ops.fuser.along_diagonals.default, row, rows)

    @property
    def _dims(self) -> Dims:
        return resolve(self.operand.dims)

    @property
    def _axes(self) -> tuple[Axis, Axis]:
        (row,), (key,) = (leaves((dim,)) for dim in resolve(self.operand.target[2:]))
        return row, key

    @property
    def _sizes(self) -> tuple[int, int]:
        rows, keys = (size_of((axis,)) for axis in self._axes)
        if not isinstance(rows, int) or not isinstance(keys, int):
            raise Unproven("a number of diagonals that varies")
        return rows, keys

    def _is_relative(self) -> bool:
        rows, keys = self._sizes
        if self.operand.fixed or rows * keys < FEWEST * (rows + keys):
            return False
        if not set(self._axes) <= set(leaves(self._dims)):
            return False
        i, j = (self.reader.symbol(axis) for axis in self._axes)
        found = self.reader.arguments(self.operand.node, self._dims, {})
        return is_along_diagonals(found, i, j)

    def _follow(self, node: Node, dims: Dims) -> bool:
        """Whether `_Emission` knows all producers between the bias and what is not trained."""
        self._read.add(node)
        if self.reader.view.is_written(node, None):
            return False
        if not value(node).requires_grad:
            return all(self.is_plain(dim) for dim in dims)
        return all(self._follow(*source) for source in self.sources(node, dims))

    def is_plain(self, dim: Sequence[Axis]) -> bool:
        """Whether a dimension is that of queries or of keys alone, or neither is in it."""
        own = leaves((tuple(dim),))
        return not set(own) & set(self._axes) or len(own) == 1

    def sources(self, node: Node, dims: Dims) -> list[tuple[Node, Dims]]:
        """The inputs of a producer that vary along queries or keys, with their dimensions.

        Raises:
            Unproven: it is none that can be applied to other positions.
        """
        op = self.view.op(node)
        if op.kind is Kind.VIEW:
            source, pulled = pull_view(op, node, dims)
            return [(source, resolve(pulled))]
        if op.kind is Kind.POINTWISE and not op.inplace:
            inputs = [n for n in node.all_input_nodes if is_tensor(n)]
            return [(n, _broadcast(dims, value(n).shape)) for n in inputs]
        if node.target is F.embedding and len(node.args) >= 2:
            names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
            more = dict(zip(names, node.args[2:], strict=False)) | node.kwargs
            if any(more.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse")):
                raise Unproven("an embedding that looks at more than one position")
            if not self.is_plain(dims[-1]) or set(leaves((dims[-1],))) & set(self._axes):
                raise Unproven("features that are positions")
            table: Any = node.args[1]
            self._read.add(table)
            if self.reader.view.is_written(table, None):
                raise Unproven("a table that is written to")
            return [(node.args[0], dims[:-1])]  # type: ignore[list-item]
        raise Unproven(f"`{node.name}` at other positions")


def _broadcast(dims: Dims, shape: Sequence[Any]) -> Dims:
    """The axes of an operand of a pointwise operator, whose result has these."""
    own = dims[len(dims) - len(shape) :]
    return tuple(() if is_one(n) else dim for dim, n in zip(own, shape, strict=True))


class _Emission:
    """Applies the producers of a bias to the positions of one row."""

    def __init__(self, of: Diagonals, builder: Builder, at: dict[Axis, Node], along: Axis) -> None:
        self.of, self.builder, self.at, self.along = of, builder, at, along

    def visit(self, node: Node, dims: Dims) -> tuple[Node, Dims]:
        """What a tensor holds along the row, and the axes of that."""
        if not value(node).requires_grad:
            return self._indexed(node, dims)
        op = self.of.view.op(node)
        sources = self.of.sources(node, dims)
        if op.kind is Kind.VIEW:
            return self.visit(*sources[0])
        found = [self.visit(*source) for source in sources]
        if op.kind is Kind.POINTWISE:
            wanted = (*(d for d in dims if not self._moves(d)), (self.along,))
            made = [self.builder.arrange(n, d, wanted) for n, d in found]
        else:
            wanted = (*found[0][1], dims[-1])
            made = [found[0][0]]
        instead = dict(zip((n for n, _ in sources), made, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: instead.get(n, n))
        insert = self.builder.call if node.op == "call_function" else self.builder.method
        return insert(node.target, *args, **kwargs), wanted  # type: ignore[arg-type]

    def _moves(self, dim: Sequence[Axis]) -> bool:
        return bool(set(leaves((tuple(dim),))) & set(self.at))

    def _indexed(self, node: Node, dims: Dims) -> tuple[Node, Dims]:
        moving = [d for d, dim in enumerate(dims) if self._moves(dim)]
        rest = tuple(dim for dim in dims if not self._moves(dim))
        if not moving:
            return self.builder.method("unsqueeze", node, -1), (*rest, ())
        order = [*(d for d in range(len(dims)) if d not in moving), *moving]
        node = self.builder.method("permute", node, order)
        at = [self.at[leaves((dims[d],))[0]] for d in moving]
        indices = [*([None] * len(rest)), *at]
        return self.builder.call(torch.ops.aten.index.Tensor, node, indices), (*rest, (self.along,))
