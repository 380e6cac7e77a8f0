"""Integer expressions, conditions and constants as steps of a program."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias, cast

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean, to_nnf
from torch import Tensor
from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.ops import value
from fuser.graph.positional import FALSE, TRUE, Levels, Truth, Value, Whole
from fuser.pattern import Operand
from fuser.torch_private import to_expr

from .places import POSITION, Places
from .scratch import Scratch

MAX_LEVELS = 4
Step: TypeAlias = "Node | int"


class Steps:
    """Writes into a scratch graph.

    Args:
        scratch: where steps go.
        places: sizes of the positions.
        sizes: nodes of the user's graph that are sizes.
    """

    def __init__(self, scratch: Scratch, places: Places, sizes: Sequence[Node]) -> None:
        self.scratch, self.places = scratch, places
        self._sizes = [n for n in sizes if isinstance(value(n), torch.SymInt)]
        self._known: dict[Any, Step] = {}

    def value(self, found: Value, dtype: torch.dtype, *, scalar: bool) -> Node:
        """A known value as a step of this dtype.

        Raises:
            Unproven: it takes too many steps, or cannot be said.
        """
        if isinstance(found, Truth):
            if found.condition in (TRUE, FALSE):
                return self.scratch.constant(found.condition == TRUE, dtype, scalar=scalar)
            return self.scratch.cast(self.condition(found.condition), dtype)
        if isinstance(found, Whole):
            if found.expr.is_Integer:
                return self.scratch.constant(int(found.expr), dtype, scalar=scalar)
            return self.scratch.cast(self._tensor(found.expr), dtype)
        if isinstance(found, Levels) and len(found.cases) <= MAX_LEVELS:
            return self._levels(found, dtype, scalar)
        raise Unproven("a value that is not known")

    def integer(self, expr: Any) -> Step:
        """An integer expression; a number where it is one."""
        if expr not in self._known:
            self._known[expr] = self._integer(sympy.sympify(expr))
        return self._known[expr]

    def condition(self, condition: Boolean, opaque: Mapping[Any, Node] | None = None) -> Node:
        """A boolean expression; `opaque` are the steps that stand behind symbols."""
        return self._condition(to_nnf(condition, simplify=False), opaque or {})

    def _levels(self, found: Levels, dtype: torch.dtype, scalar: bool) -> Node:
        *others, (_, last) = found.cases
        if not others:
            return self.scratch.constant(_number(last), dtype, scalar=scalar)
        result: Any = _number(last)
        for condition, level in reversed(others):
            chosen = self.condition(condition)
            result = self.scratch.call(torch.where, chosen, _number(level), result)
        return self.scratch.cast(result, dtype)

    def _tensor(self, expr: sympy.Expr) -> Node:
        found = self.integer(expr)
        if isinstance(found, Node) and isinstance(found.meta["example"], Tensor):
            return found
        raise Unproven("a size where a tensor is needed")

    def _integer(self, e: Any) -> Step:
        if e.is_Integer:
            return int(e)
        if isinstance(e, sympy.Symbol):
            return self._symbol(e)
        if isinstance(e, sympy.Add):
            return self._sum(e)
        if isinstance(e, sympy.Mul):
            return self._reduced(operator.mul, e.args)
        if isinstance(e, sympy.Abs):
            return self.scratch.call(torch.abs, self.integer(e.args[0]))
        if isinstance(e, sympy.Mod):
            return self._binary(operator.mod, self.integer(e.args[0]), self.integer(e.args[1]))
        if isinstance(e, sympy.floor):
            top, bottom = sympy.fraction(sympy.together(e.args[0]))
            above = self.integer(sympy.expand(top))
            return self._binary(operator.floordiv, above, self.integer(bottom))
        raise Unproven(f"no steps for {e}")

    def _symbol(self, symbol: sympy.Symbol) -> Node:
        if symbol in POSITION:
            return self.scratch.named(str(symbol.name))
        for name, count in self.places.counts.items():
            if count == symbol:
                return self.scratch.named(name)
        for node in self._sizes:
            if to_expr(value(node)) == symbol:
                captured = self.scratch.captured(Operand(node, (), ()))
                return self.scratch.cast(captured, torch.int64)
        raise Unproven(f"no input tells {symbol}")

    def _sum(self, e: Any) -> Step:
        """Positive summands first, so that nothing is negated."""
        plus, minus = _sides(e)
        total = self._reduced(operator.add, plus) if plus else 0
        for term in minus:
            total = self._binary(operator.sub, total, self.integer(term))
        return total

    def _reduced(self, function: Any, terms: Sequence[Any]) -> Step:
        ordered = sorted(terms, key=lambda t: (t.is_Integer, str(t)))
        first, *others = (self.integer(t) for t in ordered)
        return reduce(lambda a, b: self._binary(function, a, b), others, first)

    def _binary(self, function: Any, a: Step, b: Step) -> Step:
        if isinstance(a, int) and isinstance(b, int):
            return int(function(a, b))
        key = (function, a, b)
        if key not in self._known:
            self._known[key] = self.scratch.call(function, a, b)
        return self._known[key]

    def _condition(self, condition: Any, opaque: Mapping[Any, Node]) -> Node:
        if isinstance(condition, (sympy.And, sympy.Or)):
            parts = [self._condition(c, opaque) for c in condition.args]
            join = operator.and_ if isinstance(condition, sympy.And) else operator.or_
            return reduce(lambda a, b: self.scratch.call(join, a, b), parts)
        if isinstance(condition, sympy.Not):
            return self.scratch.call(torch.logical_not, self._condition(condition.args[0], opaque))
        if isinstance(condition, Relational):
            return self._comparison(condition)
        if condition in opaque:
            return opaque[condition]
        raise Unproven(f"no steps for {condition}")

    def _comparison(self, condition: Relational) -> Node:
        """`e >= 0` with the negative summands on the other side."""
        left, right = cast(tuple[Any, Any], condition.args)
        name, e = cast(Any, condition).rel_op, sympy.expand(left - right)
        if name in ("<", "<="):
            name, e = name.replace("<", ">"), -e
        if name == ">=" and e.as_coeff_Add()[0] == -1:
            name, e = ">", e + 1
        elif name == ">" and e.as_coeff_Add()[0] == 1:
            name, e = ">=", e - 1
        plus, minus = _sides(e)
        above, below = self.integer(sympy.Add(*plus)), self.integer(sympy.Add(*minus))
        if isinstance(above, int):
            above, below, name = below, above, name.replace(">", "<")
        return cast(Node, self._binary(_COMPARE[name], above, below))


_COMPARE = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def _sides(e: Any) -> tuple[list[Any], list[Any]]:
    """The positive summands, and the negative ones without their signs."""
    terms = [t for t in sympy.Add.make_args(sympy.expand(e)) if t != 0]
    negative = [t for t in terms if t.as_coeff_Mul()[0] < 0]
    return [t for t in terms if t not in negative], [-t for t in negative]


def _number(level: Tensor) -> Any:
    if level.dtype is torch.float64 or level.is_complex():
        raise Unproven("a constant in double precision")
    return level.item()
