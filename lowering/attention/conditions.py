"""What a program computes from positions, as sympy expressions; what it reads from data is opaque.

The rules are those of `fuser.graph.positional`, applied to the steps of a program. A truth value
that depends on data becomes a sympy symbol without any property, so that the rest of a condition
can still be reasoned about.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, cast

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean, to_nnf
from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.ops import read
from fuser.graph.positional import (
    FALSE,
    TRUE,
    Sizes,
    Truth,
    Unknown,
    Value,
    Whole,
    at_least_zero,
    bounded,
    cast_to,
    constant,
    pointwise,
)
from fuser.graph.program import POSITIONS, SIZES, Program, rounded
from fuser.swallowed import swallow

IB, IH, IQ, IK = (sympy.Symbol(name, integer=True, nonnegative=True) for name in POSITIONS)
BATCHES, HEADS, ROWS, KEYS = (
    sympy.Symbol(name, integer=True, positive=True) for name in ("batches", "heads", "rows", "keys")
)
UNKNOWN = Unknown(frozenset())
_TRUTHS = {
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not",
    "isnan", "isinf", "isfinite", "signbit", "bool",
}  # fmt: skip
_LOGIC = {
    "bitwise_and": ("input", "other"),
    "bitwise_or": ("input", "other"),
    "bitwise_xor": ("input", "other"),
    "bitwise_not": ("input",),
    "logical_and": ("input", "other"),
    "logical_or": ("input", "other"),
    "logical_xor": ("input", "other"),
    "logical_not": ("input",),
    "where": ("condition",),
    "masked_fill": ("mask",),
}
"""Operands of which only the truth counts, given that the result is one."""


def conditions(mask: Program) -> Boolean:
    """Where a mask is true, over `IB`, `IH`, `IQ`, `IK` and the sizes `BATCHES`, ..., `KEYS`.

    What depends on captured tensors is a symbol of its own, of which nothing is known.
    """
    graph = mask.graph
    (output,) = (n for n in graph.nodes if n.op == "output")
    return ProgramReader().condition(cast(Node, output.args[0]))


class ProgramReader:
    """Reads the steps of one program.

    Attributes:
        sizes: how many positions every index symbol has.
        opaque: the step behind each symbol that stands for a truth value from data.
    """

    def __init__(
        self,
        counts: Mapping[str, sympy.Expr] | None = None,
        sizes: Sizes | None = None,
        opened: Mapping[Node, Node] | None = None,
    ) -> None:
        """
        Args:
            counts: the inputs that are sizes, as expressions; by default symbols.
            sizes: of every index symbol; by default those symbols.
            opened: steps that are the same as others, of which more can be told.
        """
        positions = (IB, IH, IQ, IK)
        totals = (BATCHES, HEADS, ROWS, KEYS)
        counts = dict(zip(SIZES, totals, strict=True)) if counts is None else counts
        self.sizes = dict(zip(positions, totals, strict=True)) if sizes is None else sizes
        self.opaque: dict[sympy.Symbol, Node] = {}
        self._opened = {} if opened is None else opened
        self._inputs: dict[str, Value] = {n: Whole(e) for n, e in counts.items()}
        for name, symbol in zip(POSITIONS, positions, strict=True):
            self._inputs[name] = Whole(symbol, torch.int64)
        self._values: dict[Node, Value] = {}

    def condition(self, node: Node) -> Boolean:
        """Where a boolean step is true."""
        found = self.value(node)
        while node in self._opened:
            node = self._opened[node]
        return self._truth(node, found).condition

    def tell(self, node: Node, found: Value) -> None:
        """What a step is known to compute."""
        self._values[node] = found

    def value(self, node: Node) -> Value:
        """The value of a step; `Unknown` where it depends on data or on floating-point numbers."""
        if node in self._opened:
            return self.value(self._opened[node])
        if node not in self._values:
            try:
                self._values[node] = self._compute(node)
            except Exception as error:  # what cannot be followed is merely unknown
                swallow(error)
                named = read(node).name in _TRUTHS
                self._values[node] = self._truth(node, UNKNOWN) if named else UNKNOWN
        return self._values[node]

    def _compute(self, node: Node) -> Value:
        if node.op == "placeholder":
            return self._inputs.get(str(node.target), UNKNOWN)
        arguments = cast(tuple[Any, ...], node.args)
        if node.target is rounded:
            return cast_to(self.value(arguments[0]), getattr(torch, arguments[1]), self.sizes)
        if node.target in (torch.full_like, torch.scalar_tensor):
            fill = arguments[1] if node.target is torch.full_like else arguments[0]
            return constant(torch.tensor([fill]).to(cast(torch.dtype, node.kwargs["dtype"])))
        op = read(node)
        if op.name == "abs" and isinstance(found := self.value(op.args["input"]), Whole):
            return bounded(Whole(sympy.Abs(found.expr), found.dtype))
        named = [op.args.get(name) for name in _LOGIC.get(op.name, ())]

        def look(source: Node) -> Value:
            found = self.value(source)
            if source not in named or isinstance(found, Truth):
                return found
            return Truth(self.condition(source))

        return pointwise(op, node, look, self._dtype(node), self.sizes)

    def _dtype(self, node: Node) -> torch.dtype | None:
        """Of a result that is an integer; None where another rule tells."""
        found = [self.value(n) for n in node.all_input_nodes]
        if node.target == "to" or not all(isinstance(v, Whole) for v in found):
            return None
        dtypes = [v.dtype for v in found if isinstance(v, Whole) and v.dtype is not None]
        return reduce(torch.promote_types, dtypes) if dtypes else None

    def _truth(self, node: Node, found: Value) -> Truth:
        if isinstance(found, Truth):
            return found
        dtype = node.meta.get("dtype")
        if not isinstance(found, Unknown) or dtype not in (None, torch.bool):
            raise Unproven("no truth value")
        known = next((s for s, n in self.opaque.items() if n is node), None)
        if known is None or dtype is None:
            # an integer whose truth is asked for twice may answer differently to `&` and `~`
            known = sympy.Dummy(node.name)
            self.opaque[known] = node
        return Truth(cast(Boolean, known))


def normal_form(condition: Boolean) -> Boolean:
    """Negations pushed down, and every comparison as `e >= 0`."""
    condition = to_nnf(condition, simplify=False)
    found = condition.atoms(Relational)
    return cast(Boolean, condition.xreplace({r: _literals(r) for r in found}))


def _literals(condition: Relational) -> Boolean:
    """A comparison of integers as comparisons `e >= 0` of expressions without absolute values."""
    left, right = cast(tuple[Any, Any], condition.args)
    e = sympy.expand(left - right)
    if isinstance(condition, sympy.Eq):
        return sympy.And(_opened(e), _opened(-e))
    if isinstance(condition, sympy.Ne):
        return sympy.Or(_opened(e - 1), _opened(-e - 1))
    if isinstance(condition, (sympy.Ge, sympy.Gt)):
        return _opened(e - int(isinstance(condition, sympy.Gt)))
    return _opened(-e - int(isinstance(condition, sympy.Lt)))


def _opened(e: Any) -> Boolean:
    """`e >= 0`, where a multiple of |x| is the least, or the greatest, of two multiples of x."""
    for found in e.atoms(sympy.Abs):
        factor = e.coeff(found)
        if factor.is_Integer:
            parts = [_opened(sympy.expand(e.xreplace({found: s * found.args[0]}))) for s in (1, -1)]
            return sympy.Or(*parts) if factor > 0 else sympy.And(*parts)
    return cast(Boolean, sympy.Ge(e, 0, evaluate=False))


def certain(condition: Any, where: Mapping[sympy.Symbol, Any], sizes: Sizes) -> bool:
    """Whether a condition holds at every position after a substitution."""
    if condition in (TRUE, FALSE):
        return condition == TRUE
    if isinstance(condition, (sympy.And, sympy.Or)):
        parts = (certain(c, where, sizes) for c in condition.args)
        return all(parts) if isinstance(condition, sympy.And) else any(parts)
    if not isinstance(condition, Relational):
        return False
    left, right = cast(tuple[Any, Any], condition.args)
    e = sympy.expand((left - right).xreplace(where))
    if isinstance(condition, sympy.Eq):
        return e == 0
    if isinstance(condition, sympy.Ne):
        return at_least_zero(e - 1, sizes) or at_least_zero(-e - 1, sizes)
    strict = int(isinstance(condition, (sympy.Gt, sympy.Lt)))
    e = e if isinstance(condition, (sympy.Ge, sympy.Gt)) else -e
    return at_least_zero(e - strict, sizes)
