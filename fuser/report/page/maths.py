"""Formulas of programs as readable maths: `((s0 * 0.25) + c0)` becomes s₀ · 0.25 + c₀.

What `Program.formula` prints is Python's grammar, with a bracket around every operation. Here those
that precedence makes needless go, names get their indices, powers stand above.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from html import escape

_SPACED = re.compile(r" (?:\*\*|[-+*/<>=!&|]+) ")
_NAME = re.compile(r"([a-z]+?)(\d+[ab]?)|([inp])([abhqk])|([A-Za-z])")
"""A name and its index: a number, a position (`iq`), a member of a pair (`na`, `c0b`)."""
_MINUS = "−"  # noqa: RUF001
_SUM, _PRODUCT, _SIGN, _POWER, _ATOM = 4, 5, 6, 7, 9
_BINARY: dict[type[ast.operator], tuple[str, int]] = {
    ast.Add: ("+", _SUM), ast.Sub: (_MINUS, _SUM), ast.Mult: ("·", _PRODUCT),
    ast.Div: ("/", _PRODUCT), ast.FloorDiv: ("//", _PRODUCT), ast.Mod: ("mod", _PRODUCT),
    ast.BitAnd: ("∧", 2), ast.BitOr: ("∨", 1), ast.BitXor: ("⊕", 1),  # noqa: RUF001
}  # fmt: skip
_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "&lt;", ast.LtE: "≤", ast.Gt: "&gt;", ast.GtE: "≥", ast.Eq: "=", ast.NotEq: "≠",
}  # fmt: skip
_COMPARISON = 3
_CHOICE = 0
Shown = tuple[str, int]
"""HTML, and how strongly it holds together."""


@lru_cache(maxsize=1024)
def maths(text: str) -> str | None:
    """A fact as HTML where it is a formula, or several with "; " between; None where it is none."""
    try:
        trees = [ast.parse(part.strip(), mode="eval").body for part in text.split("; ")]
        if not any(isinstance(tree, ast.Call) for tree in trees) and not _SPACED.search(text):
            return None
        return "; ".join(_show(tree)[0] for tree in trees)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # words, or deeper than Python's parser goes


def _show(tree: ast.expr) -> Shown:
    match tree:
        case ast.Name(name):
            return _name(name), _ATOM
        case ast.Constant(bool() | int() | float() | str() as constant):
            return _constant(constant)
        case ast.UnaryOp(ast.USub(), operand):
            return f"{_MINUS}{_within(operand, _SIGN)}", _SIGN
        case ast.BinOp(base, ast.Pow(), exponent):
            return f"{_within(base, _ATOM)}<sup>{_show(exponent)[0]}</sup>", _POWER
        case ast.BinOp(left, operator, right) if type(operator) in _BINARY:
            sign, level = _BINARY[type(operator)]
            return _joined(_within(left, level), sign, _within(right, level + 1)), level
        case ast.Compare(left, [operator], [right]) if type(operator) in _COMPARED:
            sign = _COMPARED[type(operator)]
            sides = [_within(side, _COMPARISON + 1) for side in (left, right)]
            return f" {sign} ".join(sides), _COMPARISON
        case ast.Call(ast.Name(name), args, keywords):
            return _call(name, args, keywords)
        case _:
            raise ValueError(ast.dump(tree))


def _joined(left: str, sign: str, right: str) -> str:
    """Two operands; what is added to is taken away where the other begins with a minus."""
    if right.startswith(_MINUS):
        if sign == "+":
            return f"{left} {_MINUS} {right.removeprefix(_MINUS)}"
        right = f"({right})"
    return f"{left} {sign} {right}"


def _within(tree: ast.expr, level: int) -> str:
    """An operand, in brackets where it would fall apart."""
    shown, own = _show(tree)
    return shown if own >= level else f"({shown})"


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Shown:
    match name, args, keywords:
        case "where", [condition, a, b], []:
            return f"{_within(a, 1)} if {_within(condition, 1)} else {_within(b, 1)}", _CHOICE
        case "masked_fill", [x, condition, fill], []:
            return f"{_within(fill, 1)} if {_within(condition, 1)} else {_within(x, 1)}", _CHOICE
        case "neg", [x], []:
            return f"{_MINUS}{_within(x, _SIGN)}", _SIGN
        case "abs", [x], []:
            return f"|{_show(x)[0]}|", _ATOM
        case "square", [x], []:
            return f"{_within(x, _ATOM)}<sup>2</sup>", _POWER
        case "sqrt", [x], []:
            return f"√{_within(x, _ATOM)}", _POWER
        case "rsqrt", [x], []:
            return f"1 / √{_within(x, _ATOM)}", _PRODUCT
        case "reciprocal", [x], []:
            return f"1 / {_within(x, _SIGN)}", _PRODUCT
        case "logical_not" | "bitwise_not" | "invert", [x], []:
            return f"¬{_within(x, _SIGN)}", _SIGN
        case "logical_and", [a, b], []:
            return f"{_within(a, 2)} ∧ {_within(b, 3)}", 2
        case "logical_or", [a, b], []:
            return f"{_within(a, 1)} ∨ {_within(b, 2)}", 1  # noqa: RUF001
        case "to", [x, ast.Name(dtype)], []:
            return f"<b>{escape(dtype)}</b>({_show(x)[0]})", _ATOM
        case "gather", [table, *indices], []:
            return f"{_show(table)[0]}[{', '.join(_show(i)[0] for i in indices)}]", _ATOM
        case _:
            parts = [_show(a)[0] for a in args]
            parts += [f"{escape(k.arg or '')} = {_show(k.value)[0]}" for k in keywords]
            return f"<b>{escape(name)}</b>({', '.join(parts)})", _ATOM


def _name(name: str) -> str:
    if name == "inf":
        return "∞"
    found = _NAME.fullmatch(name)
    if found is None:
        return escape(name)
    letter = found[1] or found[3] or found[5]
    index = found[2] or found[4]
    return f"<i>{letter}</i>" + (f"<sub>{index}</sub>" if index else "")


def _constant(constant: object) -> Shown:
    mantissa, _, exponent = str(constant).partition("e")
    if not isinstance(constant, float) or not exponent:
        return escape(str(constant)), _ATOM
    power = f"10<sup>{int(exponent)}</sup>".replace("-", _MINUS)
    return (power, _POWER) if mantissa == "1" else (f"{mantissa} · {power}", _PRODUCT)
