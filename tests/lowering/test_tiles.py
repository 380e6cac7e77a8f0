"""Bounds of tiles against the dense mask: drawn conditions, and the masks that models have."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Proxy

from fuser.graph.program import Program, ProgramBuilder
from fuser.lowering.attention import tiles
from fuser.lowering.attention.text import print_expr
from fuser.lowering.triton.trace import NotPrintable

Condition = Callable[..., Any]
"""Over iq, ik, ih, nq, nk and the captured c0."""
NAMES = ("iq", "ik", "ih", "nq", "nk", "c0")


def program(condition: Condition) -> Program:
    """The steps that a function takes."""
    builder = ProgramBuilder()
    inputs = {name: Proxy(builder.input(name)) for name in NAMES}
    return builder.finish(condition(**inputs).node)


def dense(condition: Program, rows: int, keys: int, data: Tensor, head: int = 0) -> Tensor:
    found = condition(
        iq=torch.arange(rows)[:, None],
        ik=torch.arange(keys)[None],
        ih=torch.tensor([[head]]),
        nq=rows,
        nk=keys,
        c0=data,
    )
    return found.expand(rows, keys)


@dataclass(frozen=True)
class Case:
    """One tile along one dimension, `keep` with the tile in its rows."""

    keep: Tensor
    first: int
    last: int
    numbers: dict[str, int]

    def value(self, expr: Any) -> int:
        """Of the printed text; C's division must not make a difference."""
        return int(eval(print_expr(expr), {}, dict(self.numbers)))


def cases(condition: Program, rows: int, keys: int, data: Tensor, head: int, size: int) -> Any:
    """Every tile of some size, along both dimensions, with its bounds."""
    keep = dense(condition, rows, keys, data, head)
    for names, found, mask in (
        (("first_row", "last_row"), tiles.keys_of_rows(condition), keep),
        (("first_key", "last_key"), tiles.rows_of_keys(condition), keep.T),
    ):
        for first in range(0, len(mask), size):
            last = min(first + size, len(mask)) - 1
            ends = dict(zip(names, (first, last), strict=True))
            numbers = {**ends, "rows": rows, "keys": keys, "ih": head, "heads": 4, "batches": 1}
            yield found, Case(mask, first, last, numbers)


def check(bounds: tiles.Bounds, case: Case) -> tuple[range, range]:
    """Nothing kept is outside, nothing dropped is in the full range; gives both, cut to the end."""
    tile = case.keep[case.first : case.last + 1]
    end = tile.shape[1]
    low = 0 if bounds.low is None else max(0, case.value(bounds.low))
    high = end if bounds.high is None else min(end, case.value(bounds.high))
    seen = tile.any(0).nonzero().flatten().tolist()
    assert all(low <= j < high for j in seen)
    full = range(0)
    if bounds.full_low is not None:
        assert bounds.full_high is not None
        start, stop = max(0, case.value(bounds.full_low)), min(end, case.value(bounds.full_high))
        full = range(start, max(start, stop))
        assert bool(tile[:, full.start : full.stop].all())
    return range(low, max(low, high)), full


# -- drawn conditions


def _offset(e: Any, by: int) -> Any:
    return e + by if by else e


def _compared(name: str, difference: Callable[..., Any], by: int) -> Condition:
    compare = getattr(operator, name)
    return lambda **x: compare(_offset(difference(**x), by), 0)


DIFFERENCES: tuple[Callable[..., Any], ...] = (
    lambda iq, ik, **_: iq - ik,
    lambda iq, ik, **_: ik - iq,
    lambda iq, ik, nq, nk, **_: iq - ik + (nk - nq),
    lambda iq, ik, **_: 2 * iq - ik,
    lambda iq, ik, **_: iq - 3 * ik,
    lambda iq, **_: iq - 4,
    lambda ik, **_: 6 - ik,
    lambda iq, ik, **_: iq // 4 - ik // 4,
    lambda iq, ik, **_: iq // 3 - (ik + 2) // 5,
    lambda iq, ik, **_: (iq - ik) // 3,
    lambda iq, ik, **_: iq - ik // 2,
    lambda iq, ik, **_: iq % 4 - ik % 3,
    lambda iq, ik, **_: (iq - ik) % 3,
    lambda iq, ik, **_: torch.abs(iq - ik) - 3,
    lambda iq, ik, **_: 2 - torch.abs(iq // 2 - ik),
    lambda iq, ik, **_: ik - iq // 4 * 4,
    lambda iq, ik, ih, **_: iq - ik - ih,
    lambda ih, **_: ih - 1,
)
LITERALS = st.one_of(
    st.builds(
        _compared,
        st.sampled_from(("ge", "gt", "le", "lt", "eq", "ne")),
        st.sampled_from(DIFFERENCES),
        st.integers(-4, 4),
    ),
    st.just(lambda c0, **_: c0),
)


def _both(a: Condition, b: Condition) -> Condition:
    return lambda **x: a(**x) & b(**x)


def _either(a: Condition, b: Condition) -> Condition:
    return lambda **x: a(**x) | b(**x)


def _not(a: Condition) -> Condition:
    return lambda **x: torch.logical_not(a(**x))


CONDITIONS = st.recursive(
    LITERALS,
    lambda inner: st.one_of(
        st.builds(_both, inner, inner), st.builds(_either, inner, inner), st.builds(_not, inner)
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(
    condition=CONDITIONS,
    rows=st.integers(1, 13),
    keys=st.integers(1, 13),
    size=st.integers(1, 5),
    head=st.integers(0, 3),
    seed=st.integers(0, 3),
)
def test_bounds_are_sound(
    condition: Condition, rows: int, keys: int, size: int, head: int, seed: int
) -> None:
    data = torch.rand(rows, keys, generator=torch.Generator().manual_seed(seed)) > 0.5
    for bounds, case in cases(program(condition), rows, keys, data, head, size):
        check(bounds, case)


# -- the masks that models have

STRUCTURES: dict[str, Condition] = {
    "causal": lambda iq, ik, **_: ik <= iq,
    "causal, negated": lambda iq, ik, **_: ~(ik > iq),
    "strict": lambda iq, ik, **_: ik < iq,
    "aligned at the end": lambda iq, ik, nq, nk, **_: ik <= iq + (nk - nq),
    "window": lambda iq, ik, **_: (ik <= iq) & (ik > iq - 5),
    "window on both sides": lambda iq, ik, **_: torch.abs(iq - ik) <= 3,
    "band": lambda iq, ik, **_: (ik <= iq + 4) & (iq - ik < 3),
    "shifted window": lambda iq, ik, nq, nk, **_: (
        (ik <= iq + (nk - nq)) & (ik > iq + (nk - nq) - 4)
    ),
    "chunks": lambda iq, ik, **_: iq // 4 == ik // 4,
    "chunks of three": lambda iq, ik, **_: iq // 3 == ik // 3,
    "causal chunks": lambda iq, ik, **_: (iq // 4 == ik // 4) & (ik <= iq),
    "blockwise causal": lambda iq, ik, **_: ik // 4 <= iq // 4,
    "prefix": lambda iq, ik, **_: (ik <= iq) | (ik < 5),
    "anti-causal": lambda iq, ik, **_: ik >= iq,
    "first queries": lambda iq, ik, **_: (iq < 3) & (ik < 7),
    "by head": lambda iq, ik, ih, **_: (ik <= iq) & (iq - ik <= ih),
}
"""For these both ranges are as tight as ranges can be."""
LOOSE: dict[str, Condition] = {
    "dilated": lambda iq, ik, **_: ((iq - ik) % 2 == 0) & (ik <= iq),
    "sinks": lambda iq, ik, **_: (ik <= iq) & ((ik > iq - 5) | (ik < 2)),
    "data": lambda iq, ik, c0, **_: (ik <= iq) & c0,
    "past or data": lambda iq, ik, c0, **_: (ik <= iq) | c0,
    "never": lambda iq, ik, **_: (ik < 0) & (ik <= iq),
    "always": lambda iq, ik, **_: (ik >= 0) | (ik <= iq),
}


def _hull(found: list[int]) -> range:
    return range(found[0], found[-1] + 1) if found else range(0)


@pytest.mark.parametrize(("rows", "keys"), [(17, 17), (12, 19), (19, 12), (1, 9)])
@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_tight(name: str, rows: int, keys: int) -> None:
    condition, data = program(STRUCTURES[name]), torch.ones(rows, keys, dtype=torch.bool)
    for size in (1, 3, 4):
        for bounds, case in cases(condition, rows, keys, data, 1, size):
            visited, full = check(bounds, case)
            tile = case.keep[case.first : case.last + 1]
            if bool(tile.any()):
                assert visited == _hull(tile.any(0).nonzero().flatten().tolist())
            else:
                assert len(visited) <= size
            assert len(full) == int(tile.all(0).sum())


@pytest.mark.parametrize("name", LOOSE)
def test_what_is_left_out_is_known(name: str) -> None:
    condition = program(LOOSE[name])
    data = torch.rand(17, 17, generator=torch.Generator().manual_seed(1)) > 0.3
    for bounds, case in cases(condition, 17, 17, data, 0, 4):
        check(bounds, case)


def test_conjunctions_with_data_keep_their_bounds() -> None:
    bounds = tiles.keys_of_rows(program(LOOSE["data"]))
    assert (str(bounds.high), bounds.full_low, bounds.full_high) == ("last_row + 1", None, None)
    bounds = tiles.keys_of_rows(program(LOOSE["past or data"]))
    assert bounds.high is None
    assert str(bounds.full_high) == "first_row + 1"


def test_dilation_leaves_the_bounds_of_the_rest() -> None:
    bounds = tiles.keys_of_rows(program(LOOSE["dilated"]))
    assert str(bounds.high) == "last_row + 1"
    assert bounds.full_low is None


def test_sinks_have_the_window_as_full_range() -> None:
    bounds = tiles.keys_of_rows(program(LOOSE["sinks"]))
    assert (str(bounds.full_low), str(bounds.full_high)) == ("last_row - 4", "first_row + 1")


def test_nothing_and_everything() -> None:
    never = tiles.keys_of_rows(program(LOOSE["never"]))
    assert (never.low, never.high, never.full_low) == (0, 0, None)
    always = tiles.keys_of_rows(program(LOOSE["always"]))
    assert (always.low, always.high, always.full_low) == (None, None, 0)
    assert str(always.full_high) == "keys"


def test_tiles_of_several_heads() -> None:
    bounds = tiles.keys_of_rows(program(STRUCTURES["by head"]), heads=True)
    assert str(bounds.low) == "first_row - last_head"
    assert str(bounds.full_low) == "-first_head + last_row"


def _as_in_c(text: str, **numbers: int) -> int:
    """Evaluate with the division of C, which Triton has."""

    class Number(int):
        def __floordiv__(self, other: int) -> Number:
            return Number(int(int(self) / int(other)))

        def __mod__(self, other: int) -> Number:
            return Number(int(self) - int(int(self) / int(other)) * int(other))

        def __add__(self, other: int) -> Number:
            return Number(int(self) + int(other))

        def __sub__(self, other: int) -> Number:
            return Number(int(self) - int(other))

        def __rsub__(self, other: int) -> Number:
            return Number(int(other) - int(self))

        def __mul__(self, other: int) -> Number:
            return Number(int(self) * int(other))

        def __neg__(self) -> Number:
            return Number(-int(self))

        __radd__, __rmul__ = __add__, __mul__

    return int(eval(text, {}, {name: Number(n) for name, n in numbers.items()}))


@pytest.mark.parametrize("divisor", [2, 3, 8, 10])
def test_text_divides_alike_in_python_and_in_c(divisor: int) -> None:
    x, y = tiles.FIRST_ROW, tiles.LAST_ROW
    for expr in (
        sympy.floor((x - 3 * y + 1) / divisor),
        sympy.ceiling((x - y) / divisor),
        sympy.floor((x + y) / divisor) * 3 - y,
        sympy.Mod(x - 2 * y - 1, divisor) - sympy.Min(x, -y),
    ):
        text = print_expr(expr)
        for a in range(0, 9, 2):
            for b in range(0, 14, 3):
                exact = int(expr.xreplace({x: sympy.Integer(a), y: sympy.Integer(b)}))
                numbers = {"first_row": a, "last_row": b}
                assert eval(text, {}, dict(numbers)) == exact
                assert _as_in_c(text, **numbers) == exact


def test_text_with_other_names() -> None:
    assert print_expr(tiles.LAST_ROW + 1, {"last_row": "m1"}) == "(m1 + 1)"


def test_text_of_an_unknown_function() -> None:
    with pytest.raises(NotPrintable):
        print_expr(tiles.LAST_ROW**2)
