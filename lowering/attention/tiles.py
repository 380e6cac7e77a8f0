"""From a mask to what a kernel skips: bounds of the keys that a tile of queries sees, and back.

A condition is read as a tree of `And` and `Or` over comparisons `e >= 0` of integers, of which one
variable (the key, say) is solved for, while the others run over a tile. An outer range leaves out
what no pair of the tile keeps; an inner range holds what all keep. Both are expressions of the
tile's first and last position, so that a kernel computes them for each tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, TypeAlias, cast

import sympy
from sympy.logic.boolalg import Boolean

from fuser.graph.positional import FALSE, TRUE, at_least_zero
from fuser.graph.program import Program

from .conditions import IH, IK, IQ, KEYS, ROWS, conditions, normal_form
from .linear import Nonlinear, extreme, solve
from .text import print_expr

Expr: TypeAlias = sympy.Expr
FIRST_ROW, LAST_ROW, FIRST_KEY, LAST_KEY, FIRST_HEAD, LAST_HEAD = (
    sympy.Symbol(name, integer=True, nonnegative=True)
    for name in ("first_row", "last_row", "first_key", "last_key", "first_head", "last_head")
)


@dataclass(frozen=True)
class Bounds:
    """Half-open ranges along one dimension, for a tile along the other.

    They are to be cut to the positions that exist: `low` may be negative, `high` beyond the end.

    Attributes:
        low, high: no pair of the tile is kept outside; None where there is no bound.
        full_low, full_high: every pair of the tile is kept inside; both None where no such range
            is known. It is empty where `full_low >= full_high`.
    """

    low: Expr | None
    high: Expr | None
    full_low: Expr | None
    full_high: Expr | None


@lru_cache(maxsize=1024)
def keys_of_rows(mask: Program, *, heads: bool = False) -> Bounds:
    """The keys that the queries `FIRST_ROW` to `LAST_ROW` (inclusive) see.

    Args:
        mask: of a spec.
        heads: the tile holds all heads from `FIRST_HEAD` to `LAST_HEAD`, not one head `IH`.
    """
    return _bounds(mask, IK, KEYS, {IQ: (FIRST_ROW, LAST_ROW)}, heads)


@lru_cache(maxsize=1024)
def rows_of_keys(mask: Program, *, heads: bool = False) -> Bounds:
    """The queries that see the keys `FIRST_KEY` to `LAST_KEY` (inclusive)."""
    return _bounds(mask, IQ, ROWS, {IK: (FIRST_KEY, LAST_KEY)}, heads)


Tile: TypeAlias = Mapping[sympy.Symbol, tuple[Expr, Expr]]
"""The first and last position of the tile along each index symbol."""


def _bounds(
    mask: Program,
    along: sympy.Symbol,
    size: sympy.Symbol,
    tile: dict[sympy.Symbol, tuple[Expr, Expr]],
    heads: bool,
) -> Bounds:
    if heads:
        tile[IH] = (FIRST_HEAD, LAST_HEAD)
    condition = normal_form(conditions(mask))
    outer = _Solver(along, size, tile, inner=False).range(condition)
    inner = _Solver(along, size, tile, inner=True).range(condition)
    low, high = (sympy.Integer(0),) * 2 if outer is None else (outer.low, outer.high)
    if inner is None:
        return Bounds(low, high, None, None)
    full_low = sympy.Integer(0) if inner.low is None else inner.low
    return Bounds(low, high, full_low, size if inner.high is None else inner.high)


@dataclass(frozen=True)
class _Range:
    """A half-open range; None is no bound.

    Attributes:
        whole: for each tile it is either everything or nothing.
    """

    low: Expr | None = None
    high: Expr | None = None
    whole: bool = False


_Found: TypeAlias = "_Range | None"
"""None: empty."""


@dataclass(frozen=True)
class _Solver:
    """Ranges of one variable.

    Attributes:
        along: the variable.
        size: how many values it has.
        tile: what the other variables run over.
        inner: where the condition holds for all of the tile, not only for some.
    """

    along: sympy.Symbol
    size: sympy.Symbol
    tile: Tile
    inner: bool

    def range(self, condition: Boolean) -> _Found:
        if condition == TRUE:
            return _Range()
        if condition == FALSE:
            return None
        if isinstance(condition, (sympy.And, sympy.Or)):
            parts = [self.range(c) for c in condition.args]
            if isinstance(condition, sympy.And):
                return reduce(_meet, parts)
            return reduce(self._join, parts)
        if isinstance(condition, sympy.Ge):
            return self._literal(cast(Expr, condition.args[0]))
        return None if self.inner else _Range()

    def _literal(self, e: Expr) -> _Found:
        """Of `e >= 0`."""
        try:
            factor, rest = solve(e, self.along, least=self.inner)
            most = extreme(rest, self.tile, least=self.inner)
        except Nonlinear:
            return None if self.inner else _Range()
        if factor == 0:
            return self._all_or_nothing(most)
        bound = sympy.floor(most / abs(factor))
        return _Range(low=-bound) if factor > 0 else _Range(high=bound + 1)

    def _all_or_nothing(self, most: Expr) -> _Found:
        if at_least_zero(most, {}):
            return _Range()
        if at_least_zero(-most - 1, {}):
            return None
        holds = sympy.Min(sympy.Max(most + 1, 0), 1)
        return _Range(self.size * (1 - holds), self.size * holds, whole=True)

    def _join(self, a: _Found, b: _Found) -> _Found:
        if a is None or b is None:
            return a or b
        low = _both(sympy.Min, a.low, b.low)
        high = _both(sympy.Max, a.high, b.high)
        hull = _Range(low, high, a.whole and b.whole)
        if not self.inner or a.whole or b.whole or a.low == b.low or a.high == b.high:
            return hull
        if (a.low is None and b.low is None) or (a.high is None and b.high is None):
            return hull
        # two ranges with, perhaps, a gap between them: the one that moves with the tile is larger
        return a if self._moves(a) else b

    def _moves(self, range_: _Range) -> bool:
        ends = {s for pair in self.tile.values() for e in pair for s in e.free_symbols}
        return any(e is not None and e.free_symbols & ends for e in (range_.low, range_.high))


def _meet(a: _Found, b: _Found) -> _Found:
    if a is None or b is None:
        return None
    low = _either(sympy.Max, a.low, b.low)
    return _Range(low, _either(sympy.Min, a.high, b.high), a.whole and b.whole)


Choice: TypeAlias = Callable[..., Any]


def _both(choose: Choice, a: Expr | None, b: Expr | None) -> Expr | None:
    return None if a is None or b is None else choose(a, b)


def _either(choose: Choice, a: Expr | None, b: Expr | None) -> Expr | None:
    if a is None or b is None:
        return b if a is None else a
    return choose(a, b)


__all__ = [
    "FIRST_HEAD", "FIRST_KEY", "FIRST_ROW", "LAST_HEAD", "LAST_KEY", "LAST_ROW", "Bounds",
    "conditions", "keys_of_rows", "print_expr", "rows_of_keys",
]  # fmt: skip
