"""Through what an element depends on its position: less than its value, and known for any tensor.

A bias that is looked up in a learned table has no value that could be told while compiling, but
`table[bucket(j - i)]` depends on i and j only through their difference. The walk is the one of
`index`; where that cannot tell a value, what the value was made from is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean
from torch.fx import Node

from .axes import Axis, Dims, Unproven
from .fold import Folder
from .index import IndexReader, aligned
from .index_rules import Index
from .ops import Kind, is_tensor, value
from .positional import Truth, Unknown, Value, Whole

Arguments = frozenset[sympy.Expr]


class DependenceReader(IndexReader):
    """Reads what elements depend on."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self._gathered: dict[sympy.Symbol, Arguments] = {}

    def arguments(self, node: Node, dims: Dims, fixed: Mapping[Axis, int]) -> Arguments:
        """Expressions of the axes' symbols; positions where all of them agree hold equal elements.

        Raises:
            Unproven: the walk was too long.
        """
        return self._opened(_arguments(self.element(node, dims, fixed)))

    def arguments_at(self, node: Node, index: Index) -> Arguments:
        """The same at an index, one expression for each dimension."""
        return self._opened(_arguments(self.at(node, index)))

    def at(self, node: Node, index: Index, reader: Node | None = None) -> Value:
        if self.view.is_written(node, reader):
            return Unknown(frozenset(index))
        return super().at(node, index, reader)

    def _compute(self, node: Node, index: Index) -> Value:
        try:
            return super()._compute(node, index)
        except Unproven:
            return Unknown(self._made_from(node, index))

    def _made_from(self, node: Node, index: Index) -> Arguments:
        """At the very least, an element depends on its own position and nothing else."""
        position = frozenset(index)
        if not is_tensor(node):
            return position
        op = self.view.op(node)
        try:
            if op.kind is Kind.POINTWISE:
                sources = [n for n in node.all_input_nodes if is_tensor(n)]
                return _union(self.at(n, self._operand(node, n, index), node) for n in sources)
            if node.target is F.embedding:
                row = self.at(node.args[0], index[:-1], node)  # type: ignore[arg-type]
                return _arguments(row) | {index[-1]}
        except Unproven:
            pass
        return position

    def _gather(self, tensor: Node, index: Index, shape: Sequence[Any], reader: Node) -> sympy.Expr:
        try:
            return super()._gather(tensor, index, shape, reader)
        except Unproven:
            if value(tensor).dtype not in (torch.int32, torch.int64):
                raise
        symbol = sympy.Dummy("gathered", integer=True)
        at = aligned(index, shape, value(tensor).shape)
        self._gathered[symbol] = _arguments(self.at(tensor, at, reader))
        return symbol

    def _opened(self, arguments: Arguments) -> Arguments:
        """Gathered positions replaced by what they depend on."""
        found: set[sympy.Expr] = set()
        for argument in arguments:
            inside = [made_from for s, made_from in self._gathered.items() if argument.has(s)]
            if not inside:
                found.add(argument)
                continue
            found |= {s for s in self.sizes if argument.has(s)}
            found = found.union(*(self._opened(made_from) for made_from in inside))
        return frozenset(found)


def _union(values: Iterable[Value]) -> Arguments:
    return frozenset[sympy.Expr]().union(*(_arguments(v) for v in values))


def _arguments(found: Value) -> Arguments:
    if isinstance(found, Unknown):
        return found.arguments
    if isinstance(found, Whole):
        return frozenset((found.expr,))
    conditions = [found.condition] if isinstance(found, Truth) else [c for c, _ in found.cases]
    return frozenset[sympy.Expr]().union(*(_compared(c) for c in conditions))


def _compared(condition: Boolean) -> Arguments:
    """The differences on whose signs a condition depends."""
    compared = {r.args[0] - r.args[1] for r in condition.atoms(Relational)}  # type: ignore[operator]
    return frozenset(sympy.expand(d) for d in compared)
