"""Integer expressions as source text that Python and Triton read alike.

Triton divides as C does: `//` and `%` of negative numbers differ from Python's. So a division that
may meet one is a shift, or a division of what has been made divisible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from ..triton.trace import NotPrintable

_PLAIN: dict[str, str] = {}


def print_expr(expr: Any, names: Mapping[str, str] = _PLAIN) -> str:
    """An expression over sums, products, floors of quotients, remainders, `Min` and `Max`.

    Args:
        expr: of integers.
        names: what symbols are called in the text, where that is not their own name.

    Raises:
        NotPrintable: another function.
    """
    return _Printer(names).text(sympy.sympify(expr))


class _Printer:
    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def text(self, e: Any) -> str:
        if isinstance(e, sympy.Symbol):
            return self.names.get(str(e.name), str(e.name))
        if e.is_Integer:
            return str(int(e)) if e >= 0 else f"({int(e)})"
        if isinstance(e, sympy.Add):
            return self._sum(e)
        if isinstance(e, sympy.Mul):
            if e.args[0] == -1:
                return f"(-{self.text(-e)})"
            return f"({' * '.join(self.text(a) for a in e.args)})"
        if isinstance(e, (sympy.Max, sympy.Min)):
            return self._choice("max" if isinstance(e, sympy.Max) else "min", e)
        if isinstance(e, (sympy.floor, sympy.ceiling)):
            return self._quotient(e)
        if isinstance(e, sympy.Mod):
            return self._remainder(e.args[0], e.args[1])
        raise NotPrintable(f"no text for {e!r}")

    def _sum(self, e: Any) -> str:
        """Positive summands first."""
        terms = sorted(sympy.Add.make_args(e), key=lambda t: (_is_minus(t), t.is_Integer, str(t)))
        found = self.text(terms[0])
        for term in terms[1:]:
            sign, term = ("-", -term) if _is_minus(term) else ("+", term)
            found += f" {sign} {self.text(term)}"
        return f"({found})"

    def _choice(self, name: str, e: Any) -> str:
        *others, found = [self.text(a) for a in sorted(e.args, key=str)]
        for other in reversed(others):
            found = f"{name}({other}, {found})"
        return found

    def _quotient(self, e: Any) -> str:
        top, bottom = sympy.fraction(sympy.together(e.args[0]))
        top = sympy.expand(top)
        if not bottom.is_Integer:
            raise NotPrintable(f"no text for {e!r}")
        if isinstance(e, sympy.ceiling):
            top = sympy.expand(top + bottom - 1)
        if bottom == 1:
            return self.text(top)
        if top.is_nonnegative:
            return f"({self.text(top)} // {bottom})"
        if _is_power(bottom):
            return f"({self.text(top)} >> {int(bottom).bit_length() - 1})"
        return f"(({self.text(top)} - {self._remainder(top, bottom)}) // {bottom})"

    def _remainder(self, top: Any, bottom: Any) -> str:
        if not (bottom.is_Integer and bottom > 0):
            raise NotPrintable(f"a remainder by {bottom}")
        text = self.text(top)
        if top.is_nonnegative:
            return f"({text} % {bottom})"
        if _is_power(bottom):
            return f"({text} & {bottom - 1})"
        return f"(({text} % {bottom} + {bottom}) % {bottom})"


def _is_minus(term: Any) -> bool:
    return bool(term.as_coeff_Mul()[0] < 0)


def _is_power(number: Any) -> bool:
    return int(number) & (int(number) - 1) == 0
