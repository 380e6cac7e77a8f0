"""Symbolic sizes as they come out of fake tensors."""

from __future__ import annotations

import sympy
from torch.utils._sympy.functions import FloorDiv

from fuser.torch_private import to_expr

S, T = (sympy.Symbol(name, integer=True, positive=True) for name in "st")
U = sympy.Symbol("u", integer=True, nonnegative=True)


def test_a_quotient_without_a_rest_is_none() -> None:
    """With `dynamic=True` a batch of as many as heads is the same symbol; matmul divides by it."""
    assert to_expr(FloorDiv(S**2, S)) == S
    assert to_expr(FloorDiv(4 * S**2 * T, 2 * S * T)) == 2 * S
    assert to_expr(FloorDiv(FloorDiv(S**2, S) * T, T)) == S


def test_other_quotients_stay() -> None:
    for quotient in (FloorDiv(S + 1, S), FloorDiv(S, 2), FloorDiv(S, T), FloorDiv(U * S, U)):
        assert to_expr(quotient) == quotient
