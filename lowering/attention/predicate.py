"""Masks that follow from sizes alone, classified by their index expression.

With dynamic shapes a mask cannot be computed while compiling, but what keeps position (i, j) can:
the conjunction of all masks is compared, literal by literal, with `j <= i` and its kin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean
from torch.fx import Node

from fuser.graph.axes import Unproven, leaves, same_size
from fuser.graph.fold import Folder
from fuser.graph.index import IndexReader
from fuser.graph.ops import read
from fuser.graph.ops import value as example_of
from fuser.graph.positional import (
    FALSE,
    TRUE,
    Levels,
    Truth,
    Value,
    at_least_zero,
    both,
    cast_to,
    pointwise,
)
from fuser.graph.positional import negated as negation
from fuser.pattern import Call
from fuser.swallowed import swallow

from .affine import HUGE, Free, Keep, Term
from .mask import MaskFacts, MaskKind


@dataclass(frozen=True)
class Predicate:
    """Where a mask keeps scores; `infinite`: the others may be lowered by infinity."""

    condition: Boolean
    infinite: bool = False


class PredicateReader:
    """Reads the masks of one call."""

    def __init__(self, call: Call, folder: Folder) -> None:
        self.call = call
        self._reader = IndexReader(folder)
        self._values: dict[Node, Value] = {}

    def keep(self, item: Term | Keep) -> Predicate | None:
        """The positions that a mask, filled in or added, leaves alone; None where unproven."""
        try:
            if isinstance(item, Keep):
                found = self._value(item.condition)
                if not isinstance(found, Truth):
                    return None
                return Predicate(negation(found.condition) if item.negated else found.condition)
            return _added(item, self._value(item.value), self._reader.sizes)
        except Exception as error:  # what cannot be followed here is merely unknown
            swallow(error)
            return None

    def classify(self, conditions: list[Boolean]) -> MaskFacts:
        """Structure of the conjunction of masks."""
        try:
            return self._classify(conditions)
        except Exception as error:  # what cannot be compared is kept as it is
            swallow(error)
            return MaskFacts(MaskKind.OTHER, False)

    def _classify(self, conditions: list[Boolean]) -> MaskFacts:
        condition = both(*conditions)
        if condition == TRUE:
            return MaskFacts(MaskKind.NONE, True)
        axes = [leaves((self.call.operands[n].target[2],)) for n in ("q0", "k0")]
        if any(len(a) != 1 for a in axes):
            return MaskFacts(MaskKind.OTHER, False)
        i, j = (self._reader.symbol(a[0]) for a in axes)
        full = self._rows_full(condition, i, j)
        kind, width = _kind(condition, i, j)
        square = same_size(axes[0][0].size, axes[1][0].size)
        if width and not square:
            return MaskFacts(MaskKind.OTHER, full)
        return MaskFacts(kind, full, width)

    def _rows_full(self, condition: Boolean, i: sympy.Symbol, j: sympy.Symbol) -> bool:
        """Whether every query keeps the key at its own position, or every query the first key."""
        sizes = self._reader.sizes
        for key in (i, sympy.Integer(0)):
            exists = at_least_zero(sizes[j] - 1 - key, sizes)
            if exists and _certain(condition, {j: key}, sizes):
                return True
        return False

    def _value(self, node: Free) -> Value:
        if not isinstance(node, Node):
            raise Unproven("a number")
        if node not in self._values:
            self._values[node] = self._compute(node)
        return self._values[node]

    def _compute(self, node: Node) -> Value:
        if node.op != "placeholder":
            return pointwise(read(node), node, self._value, None, self._reader.sizes)
        operand = self.call.operands[str(node.target)]
        if not operand.target:
            if isinstance(example := example_of(operand.node), torch.Tensor) and example.ndim:
                raise Unproven("a tensor without a place")
            return self._reader.at(operand.node, ())
        fixed = dict(operand.fixed)
        if set(leaves(operand.dims)) - set(fixed) - set(leaves(operand.target)):
            raise Unproven("a tensor has an axis that its place does not have")
        found = self._reader.element(operand.node, operand.dims, fixed)
        if operand.dtype is not None:
            found = cast_to(found, operand.dtype, self._reader.sizes)
        return found


def _added(term: Term, found: Value, sizes: Any) -> Predicate | None:
    """A bias made of zeros and huge negative numbers alone."""
    if not isinstance(found, Levels):
        return None
    kept: list[Boolean] = []
    infinite = False
    for condition, level in found.cases:
        for how, operand in term.steps:
            if how == "to":
                level = level.to(operand)
            elif isinstance(operand, (int, float)):
                level = level * operand if how == "mul" else level / operand
            else:
                return None
        number = float(level.item())
        if number == 0:
            kept.append(condition)
        elif not number <= -HUGE:
            return None
        infinite |= number == -torch.inf
    everywhere = len(kept) == len(found.cases)
    union = TRUE if everywhere else sympy.Or(*kept) if kept else FALSE
    return Predicate(union, infinite)


def _kind(condition: Boolean, i: sympy.Symbol, j: sympy.Symbol) -> tuple[MaskKind, int]:
    literals = [_literal(c) for c in sympy.And.make_args(condition)]
    if (">=", i - j) not in literals:
        return MaskKind.OTHER, 0
    others = [x for x in literals if x != (">=", i - j)]
    if not others:
        return MaskKind.CAUSAL, 0
    if len(others) == 1:
        name, expr = others[0]
        width = sympy.expand(expr - j + i + 1) if expr is not None else sympy.Symbol("none")
        if name == ">=" and width.is_Integer and width > 0:
            return MaskKind.WINDOW, int(width)
        chunk = _chunk(expr, i, j) if name == "==" else 0
        if chunk:
            return MaskKind.CHUNKED, chunk
    return MaskKind.OTHER, 0


def _chunk(expr: Any, i: sympy.Symbol, j: sympy.Symbol) -> int:
    """c, where an equation is `floor(i / c) == floor(j / c)`."""
    for found in expr.atoms(sympy.floor):
        ratio = found.args[0].coeff(i)
        if ratio.is_Rational and ratio > 0 and (1 / ratio).is_Integer:
            difference = sympy.floor(i * ratio) - sympy.floor(j * ratio)
            if expr in (difference, -difference):
                return int(1 / ratio)
    return 0


def _literal(condition: Any) -> tuple[str, Any]:
    """`e >= 0` or `e == 0` over integers as a name and e; any other condition has no expression."""
    if not isinstance(condition, Relational):
        return "?", None
    left, right = cast(tuple[Any, Any], condition.args)
    difference = sympy.expand(left - right)
    if isinstance(condition, sympy.Eq):
        return "==", difference
    if isinstance(condition, (sympy.Ge, sympy.Gt)):
        return ">=", sympy.expand(difference - int(isinstance(condition, sympy.Gt)))
    if isinstance(condition, (sympy.Le, sympy.Lt)):
        return ">=", sympy.expand(-difference - int(isinstance(condition, sympy.Lt)))
    return "?", None


def _certain(condition: Any, where: Mapping[sympy.Symbol, Any], sizes: Any) -> bool:
    """Whether a condition holds at every position after a substitution."""
    if condition == TRUE:
        return True
    if isinstance(condition, (sympy.And, sympy.Or)):
        parts = (_certain(c, where, sizes) for c in condition.args)
        return all(parts) if isinstance(condition, sympy.And) else any(parts)
    name, expr = _literal(condition)
    if expr is None:
        return False
    expr = sympy.expand(expr.xreplace(where))
    return at_least_zero(expr, sizes) if name == ">=" else expr == 0
