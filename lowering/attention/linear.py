"""Integer expressions that are sums of symbols, floors and remainders: solved, and bounded.

`floor(y)` and `y mod c` of such sums are what views, chunks and dilations make of positions. What
else holds a variable is `Nonlinear`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import sympy

Expr: TypeAlias = sympy.Expr


class Nonlinear(Exception):
    """A product, a power, or another function of a variable."""


def solve(e: Expr, x: sympy.Symbol, *, least: bool) -> tuple[int, Expr]:
    """`a` and `r` such that `e >= 0` is `a x + r >= 0`, with r free of x.

    Where there are no such numbers, `a x + r` is not below e at any position, or, with `least`, not
    above it.

    Raises:
        Nonlinear: x is in anything but sums, floors and remainders.
    """
    terms = _terms(e)
    inside = {atom: factor for atom, factor in terms.items() if atom.has(x) and atom != x}
    for atom, factor in inside.items():
        if isinstance(atom, sympy.Mod):
            rest = e - factor * atom
            return solve(rest + factor * _end_of(atom, (factor > 0) != least), x, least=least)
    if any(not isinstance(atom, sympy.floor) for atom in inside):
        raise Nonlinear(str(e))
    if len(inside) == 1 and x not in terms:
        ((atom, factor),) = inside.items()
        return solve(_without_floor(factor, atom, e - factor * atom), x, least=least)
    for atom, factor in inside.items():
        y: Any = atom.args[0]
        slack = 0 if (factor > 0) != least else sympy.Rational(1, _denominator(y)) - 1
        e = e + factor * (y + slack - atom)
    if inside:
        e = sympy.expand(e)
        return solve(e * _denominator(e), x, least=least)
    factor = terms.get(x, sympy.Integer(0))
    if not factor.is_Integer:
        raise Nonlinear(str(e))
    return int(factor), sympy.expand(e - factor * x)


def extreme(e: Expr, tile: Mapping[sympy.Symbol, tuple[Expr, Expr]], *, least: bool) -> Expr:
    """A bound of e while each symbol of a tile runs from a first to a last value.

    The bound is from above, or, with `least`, from below; it is reached where e rises or falls with
    each symbol as a whole.

    Raises:
        Nonlinear: a symbol is in anything but sums, floors and remainders.
    """
    for symbol, ends in tile.items():
        if e.has(symbol):
            e = _extreme(e, symbol, ends, least)
    return e


def _extreme(e: Expr, symbol: sympy.Symbol, ends: tuple[Expr, Expr], least: bool) -> Expr:
    direction = _direction(e, symbol)
    if direction:
        return sympy.expand(e.xreplace({symbol: ends[int((direction > 0) != least)]}))
    total: Any = sympy.Integer(0)
    for atom, factor in _terms(e).items():
        below = (factor > 0) == least
        if not atom.has(symbol):
            total += factor * atom
        elif isinstance(atom, sympy.Mod):
            total += factor * _end_of(atom, not below)
        elif isinstance(atom, sympy.floor):
            inside = _extreme(atom.args[0], symbol, ends, below)
            total += factor * sympy.floor(inside)
        elif atom == symbol:
            total += factor * ends[int(not below)]
        else:
            raise Nonlinear(str(e))
    return sympy.expand(total)


def _direction(e: Expr, symbol: sympy.Symbol) -> int:
    """1 where e never falls while a symbol grows, -1 where it never rises, 0 where unknown."""
    found: set[int] = set()
    for atom, factor in _terms(e).items():
        if not atom.has(symbol):
            continue
        inside = 0
        if atom == symbol:
            inside = 1
        elif isinstance(atom, sympy.floor):
            inside = _direction(atom.args[0], symbol)
        found.add(inside if factor > 0 else -inside)
    return found.pop() if len(found) == 1 else 0


def _without_floor(factor: Any, atom: Any, rest: Expr) -> Expr:
    """`factor * floor(y) + rest >= 0` as a comparison of y itself."""
    (y,) = atom.args
    over = _denominator(y)
    most = rest if abs(factor) == 1 else sympy.floor(rest / abs(factor))
    found = over * (y + most) if factor > 0 else over * (most + 1 - y) - 1
    return sympy.expand(found)


def _terms(e: Any) -> dict[Expr, Any]:
    """Factors of the summands, by summand."""
    found: dict[Expr, Any] = {}
    for term in sympy.Add.make_args(sympy.expand(e)):
        factor, atom = term.as_coeff_Mul()
        found[atom] = found.get(atom, 0) + factor
    return found


def _denominator(e: Any) -> int:
    return int(sympy.ilcm(1, *(factor.q for factor in _terms(e).values())))


def _end_of(atom: Any, last: bool) -> int:
    """The least or the greatest remainder."""
    modulus = atom.args[1]
    if not (modulus.is_Integer and modulus > 0):
        raise Nonlinear(str(atom))
    return int(modulus) - 1 if last else 0
