"""What one element of a tensor is, as a function of its position: integers, truth values, levels.

Sizes and positions are sympy integers; conditions are sympy booleans over them. Floating-point
values are never reasoned about: a float tensor is a choice between constants, and an operator on
it is run on each of them. Whatever is not exact raises `Unproven`.

Integers are taken as unbounded, which is right for positions below 2**31 while coefficients stay
small: `bounded` sees to that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from ..torch_private import eager_world
from .axes import Unproven
from .ops import SIGNATURES, Kind, Op
from .program import CASTS, IDENTITIES

MAX_CASES = 16
Sizes: TypeAlias = Mapping[sympy.Symbol, sympy.Expr]
"""Number of positions along every index symbol: 0 <= symbol < size."""


@dataclass(frozen=True)
class Whole:
    """An integer; `dtype` is None for a Python number or size."""

    expr: sympy.Expr
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Truth:
    """A truth value."""

    condition: Boolean


@dataclass(frozen=True, eq=False)
class Levels:
    """A choice between constants (tensors of one element): exclusive, exhaustive cases."""

    cases: tuple[tuple[Boolean, Tensor], ...]


@dataclass(frozen=True)
class Unknown:
    """Some function of `arguments`; only `dependence` makes such values."""

    arguments: frozenset[sympy.Expr]


Value: TypeAlias = "Whole | Truth | Levels | Unknown"
TRUE, FALSE = cast(Boolean, sympy.true), cast(Boolean, sympy.false)
_LIMITS = {torch.int64: 1 << 31, torch.int32: 1 << 10, None: 1 << 31}


def constant(found: Tensor) -> Value:
    """The value of a tensor of one element."""
    if found.dtype is torch.bool:
        return Truth(TRUE if found.item() else FALSE)
    if found.dtype in (torch.int32, torch.int64):
        return bounded(Whole(sympy.Integer(int(found.item())), found.dtype))
    return Levels(((TRUE, found),))


def bounded(value: Whole) -> Whole:
    """The integer itself, where no element of a tensor of its dtype can have wrapped around."""
    limit = _LIMITS.get(value.dtype)
    if limit is None or any(abs(int(n)) > limit for n in value.expr.atoms(sympy.Integer)):
        raise Unproven("an integer that may not fit its dtype")
    return value


def at_least_zero(expr: Any, sizes: Sizes) -> bool:
    """Whether an integer is certainly not negative at any position."""
    expr = sympy.expand(expr)
    for symbol in [s for s in expr.free_symbols if s in sizes]:
        factor = expr.coeff(symbol)
        rest = sympy.expand(expr - factor * symbol)
        if not factor.is_Integer or rest.has(symbol):
            return False
        lowest = 0 if factor > 0 else sizes[cast(sympy.Symbol, symbol)] - 1
        expr = sympy.expand(rest + factor * lowest)
    positive = {s: s + 1 for s in expr.free_symbols if s.is_positive and s.is_integer}
    raised = {s: sympy.Dummy(integer=True, nonnegative=True) + 1 for s in positive}
    return bool(sympy.expand(expr.xreplace(raised)).is_nonnegative)


def not_negative(expr: Any, sizes: Sizes) -> Boolean:
    """The condition `expr >= 0`."""
    expr = sympy.expand(expr)
    if at_least_zero(expr, sizes):
        return TRUE
    if at_least_zero(-expr - 1, sizes):
        return FALSE
    return cast(Boolean, sympy.Ge(expr, 0))


def is_zero(expr: Any, sizes: Sizes) -> Boolean:
    """The condition `expr == 0`."""
    expr = sympy.expand(expr)
    if expr == 0:
        return TRUE
    if at_least_zero(expr - 1, sizes) or at_least_zero(-expr - 1, sizes):
        return FALSE
    return cast(Boolean, sympy.Eq(expr, 0))


def gate(condition: Boolean, value: Value) -> Value:
    """The value where the condition holds, zero elsewhere."""
    if isinstance(value, Truth):
        return Truth(both(condition, value.condition))
    if isinstance(value, Whole):
        if value.expr == 0 or condition == TRUE:
            return value
        value = Levels(((TRUE, _tensor(value)),))
    if isinstance(value, Unknown):
        raise Unproven("a value that is not known")
    kept = [(both(condition, c), t) for c, t in value.cases]
    zero = torch.zeros_like(value.cases[0][1])
    return _merged([*kept, (negated(condition), zero)])


def pointwise(
    op: Op, node: Node, look: Callable[[Node], Value], dtype: torch.dtype | None, sizes: Sizes
) -> Value:
    """The result of a pointwise operator; `dtype` is its result's, where known."""
    signature = SIGNATURES.get(op.name)
    if "out" in op.args or signature is None or signature[0] is not Kind.POINTWISE:
        raise Unproven(f"`{op.name}` is not followed")
    if op.name in IDENTITIES:
        return look(op.args["input"])
    if op.name in ("to", "type_as", "type", *CASTS):
        asked = dtype if dtype is not None else op.args.get("dtype")
        return cast_to(look(op.args["input"]), asked, sizes)
    found = {n: look(n) for n in node.all_input_nodes}
    args = {k: found[a] if isinstance(a, Node) else a for k, a in op.args.items()}
    args.pop("inplace", None)
    result = _logic(op.name, args)
    if result is None:
        result = _integers(op.name, args, dtype, sizes)
    return _each_case(node, found, dtype) if result is None else result


def cast_to(value: Value, dtype: Any, sizes: Sizes) -> Value:
    """`value.to(dtype)`."""
    if not isinstance(dtype, torch.dtype):
        raise Unproven("a cast to an unclear dtype")
    if isinstance(value, Truth) and dtype is torch.bool:
        return value
    if isinstance(value, Whole) and not value.expr.is_Integer:
        if dtype is torch.bool:
            return Truth(negated(is_zero(value.expr, sizes)))
        return bounded(Whole(value.expr, dtype))
    cases = [(c, t.to(dtype)) for c, t in _cases(value)]
    return _merged(cases)


def both(*conditions: Boolean) -> Boolean:
    return sympy.And(*conditions)


def negated(condition: Boolean) -> Boolean:
    return sympy.Not(condition)


def _either(*conditions: Boolean) -> Boolean:
    return sympy.Or(*conditions)


_LOGIC: dict[str, Callable[..., Any]] = {
    "bitwise_and": sympy.And, "logical_and": sympy.And, "bitwise_or": sympy.Or,
    "logical_or": sympy.Or, "bitwise_xor": sympy.Xor, "logical_xor": sympy.Xor,
    "bitwise_not": sympy.Not, "logical_not": sympy.Not,
}  # fmt: skip


def _logic(name: str, args: Mapping[str, Any]) -> Value | None:
    """Operators on truth values alone."""
    values = [_truth(a) for a in args.values()]
    if any(v is None for v in values):
        return None
    conditions = {k: cast(Boolean, _truth(a)) for k, a in args.items()}
    if name in _LOGIC:
        return Truth(_LOGIC[name](*conditions.values()))
    if name in ("eq", "ne"):
        differ = sympy.Xor(*conditions.values())
        return Truth(differ if name == "ne" else negated(differ))
    if name == "where":
        chosen, a, b = conditions["condition"], conditions["input"], conditions["other"]
    elif name == "masked_fill":
        chosen, a, b = conditions["mask"], conditions["value"], conditions["input"]
    else:
        return None
    return Truth(_either(both(chosen, a), both(negated(chosen), b)))


def _truth(argument: Any) -> Boolean | None:
    if isinstance(argument, bool):
        return TRUE if argument else FALSE
    return argument.condition if isinstance(argument, Truth) else None


def _integers(
    name: str, args: Mapping[str, Any], dtype: torch.dtype | None, sizes: Sizes
) -> Value | None:
    """Arithmetic and comparisons of integers."""
    extra = set(args) - {"input", "other"}
    mode = args.get("rounding_mode") if name == "div" else None
    if extra - {"rounding_mode"} or (name == "div" and mode != "floor"):
        return None
    a = _whole(args.get("input"))
    b = _whole(args["other"]) if "other" in args else sympy.Integer(0)
    if a is None or b is None:
        return None
    compare = _COMPARISONS.get(name)
    if compare is not None:
        return Truth(compare(a, b, sizes))
    rule = _ARITHMETIC.get("floor_divide" if name == "div" else name)
    if rule is None:
        return None
    result = rule(a, b)
    return None if result is None else bounded(Whole(sympy.expand(result), dtype))


def _whole(argument: Any) -> sympy.Expr | None:
    if isinstance(argument, int) and not isinstance(argument, bool):
        return sympy.Integer(argument)
    return argument.expr if isinstance(argument, Whole) else None


_COMPARISONS: dict[str, Callable[[Any, Any, Sizes], Boolean]] = {
    "ge": lambda a, b, s: not_negative(a - b, s),
    "gt": lambda a, b, s: not_negative(a - b - 1, s),
    "le": lambda a, b, s: not_negative(b - a, s),
    "lt": lambda a, b, s: not_negative(b - a - 1, s),
    "eq": lambda a, b, s: is_zero(a - b, s),
    "ne": lambda a, b, s: negated(is_zero(a - b, s)),
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: b - a,
    "neg": lambda a, b: -a,
    "mul": lambda a, b: a * b if a.is_Integer or b.is_Integer else None,
    "floor_divide": lambda a, b: sympy.floor(a / b) if b.is_Integer and b > 0 else None,
    "remainder": lambda a, b: sympy.Mod(a, b) if b.is_Integer and b > 0 else None,
}


def _each_case(node: Node, found: Mapping[Node, Value], dtype: torch.dtype | None) -> Value:
    """Run the operator itself on every combination of constants."""
    names = list(found)
    choices = [_cases(found[n]) for n in names]
    total = 1
    for cases in choices:
        total *= len(cases)
    if total > MAX_CASES:
        raise Unproven("too many cases")
    results: list[tuple[Boolean, Tensor]] = []
    with eager_world():
        for combination in itertools.product(*choices):
            condition = both(*(c for c, _ in combination))
            if condition == FALSE:
                continue
            held = dict(zip(names, (t for _, t in combination), strict=True))
            results.append((condition, _run(node, held)))
    if not results or (dtype is not None and any(t.dtype is not dtype for _, t in results)):
        raise Unproven("a result of another dtype")
    return _merged(results)


def _run(node: Node, held: Mapping[Node, Any]) -> Tensor:
    held = {n: t.clone() if isinstance(t, Tensor) else t for n, t in held.items()}
    args, kwargs = map_arg(node.args, held.__getitem__), map_arg(node.kwargs, held.__getitem__)
    if node.op == "call_method":
        result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    else:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    if not isinstance(result, Tensor) or result.numel() != 1:
        raise Unproven("an operator without one result")
    return result


def _cases(value: Value) -> list[tuple[Boolean, Any]]:
    if isinstance(value, Unknown):
        raise Unproven("a value that is not known")
    if isinstance(value, Levels):
        return list(value.cases)
    if isinstance(value, Whole):
        return [(TRUE, _tensor(value))]
    cases = [
        (value.condition, torch.ones(1, dtype=torch.bool)),
        (negated(value.condition), torch.zeros(1, dtype=torch.bool)),
    ]
    return [(c, t) for c, t in cases if c != FALSE]


def _tensor(value: Whole) -> Any:
    if not value.expr.is_Integer:
        raise Unproven("a position where only constants are followed")
    number = int(value.expr)
    return number if value.dtype is None else torch.tensor([number], dtype=value.dtype)


def _merged(cases: list[tuple[Boolean, Tensor]]) -> Value:
    """Cases of equal constants joined; truth values as one condition."""
    groups: dict[str, tuple[list[Boolean], Tensor]] = {}
    for condition, found in cases:
        if condition != FALSE:
            groups.setdefault(repr(found.item()), ([], found))[0].append(condition)
    kinds = {found.dtype for _, found in groups.values()}
    if len(kinds) != 1:
        raise Unproven("constants of different dtypes")
    if len(groups) == 1:
        return constant(next(iter(groups.values()))[1])
    if kinds == {torch.bool}:
        return Truth(_either(*groups["True"][0]))
    return Levels(tuple((_either(*conditions), found) for conditions, found in groups.values()))
