"""Spellings of attention by generated kernels, in Triton's interpreter, beside the reference.

The interpreter is slow: every fortieth one, in training. `FUSER_EVERY=1` takes all, in both modes.
Kinds of attention at odd sizes, with head dimensions from 16 to 256, are held to twice the
reference's error and a rounding of the largest number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attention.cases import Spelling
from tests.attention.spellings import SPELLINGS
from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import EVERY, some
from tests.lowering.generated import (
    FACTOR,
    Operands,
    generated,
    operands,
    outcome,
    reference,
    spec,
)

TRITON = {"fuser.lowering": "triton"}
REPLACED = "replacement"
"""The lowering of a composite that is replaced as a whole, with the library's call in it."""
MODES = [
    (s, grad)
    for s in some(SPELLINGS, 40)
    for grad in ((False, True) if EVERY and s.trains else (s.trains,))
]
IDS = [f"{s.name}-{'training' if grad else 'inference'}" for s, grad in MODES]


def _check(case: Spelling, dtype: torch.dtype, grad: bool) -> None:
    inputs, program = case.inputs(dtype), case.program(dtype)
    exact = run(wide(program), wide(inputs), grad=grad)
    ours = compiled(program, inputs, grad=grad, **TRITON)
    theirs = compiled(program, inputs, grad=grad, **{"fuser.lowering": "reference"})
    assert ours.rewrites() == case.attentions, ours.reasons()
    made = [r.lowering for r in ours.record.rewritten]  # a composite that is opened has none
    assert REPLACED in made or any(name.startswith("triton") for name in made), made
    assert not any(name.startswith(("aten", "reference")) for name in made)
    assert_near(ours, theirs, exact, factor=FACTOR)


@pytest.mark.parametrize(("case", "grad"), MODES, ids=IDS)
def test_spellings(case: Spelling, grad: bool) -> None:
    _check(case, torch.float32, grad)


HALVES = (torch.bfloat16, torch.float16)
IN_HALF = [
    (case, dtype)
    for i, case in enumerate(SPELLINGS)
    for j, dtype in enumerate(HALVES)
    if EVERY or i % 120 == 60 * j + 3
]


@pytest.mark.parametrize(("case", "dtype"), IN_HALF, ids=lambda x: getattr(x, "name", str(x)))
def test_half_precision(case: Spelling, dtype: torch.dtype) -> None:
    _check(case, dtype, case.trains and dtype is torch.bfloat16)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDINGS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
"""Of the largest number: one in half precision, those of a sum in single precision."""
SIZES = ((1, 500), (3, 129), (17, 127), (127, 17), (129, 1), (500, 3))
"""Queries and keys."""
FEATURES = (16, 256, 24, 128, 64, 80)
Kind = tuple[dict[str, Any], Callable[[int, int], dict[str, Any]]]


def _causal(iq: Tensor, ik: Tensor, nq: Any, nk: Any) -> Tensor:
    return ik <= iq + (nk - nq)


def _cap(s0: Tensor) -> Tensor:
    return torch.tanh(s0 * 0.1) * 3.0


def _plus(s0: Tensor, c0: Tensor) -> Tensor:
    return s0 * 0.2 + c0


def _kept(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.where(c0 > -0.3, s0 * 0.2, -math.inf)


def _both(s0: Tensor, s1: Tensor) -> Tensor:
    return (s0 + s1) * 0.2


KINDS: dict[str, Kind] = {
    "grouped": ({"score": lambda s0: s0 * 0.2}, lambda m, n: {}),
    "causal": ({"score": _cap, "mask": _causal, "dead_rows_are_zero": True}, lambda m, n: {}),
    "bias": ({"score": _plus}, lambda m, n: {"shapes": [(2, m, n)]}),
    "padding": ({"score": _kept}, lambda m, n: {"shapes": [(2, 1, 1, n)]}),
    "sink": ({"score": _cap, "sink": "c0"}, lambda m, n: {"shapes": [(1, 2, 1, 1)]}),
    "latent": ({"score": _both}, lambda m, n: {"products": 2, "values": 40}),
}
"""Fields of a spec, and what its operands are at a size."""


def _at_sizes() -> Iterator[Any]:
    for i, name in enumerate(KINDS):
        for j, dtype in enumerate(DTYPES):
            for k, (rows, keys) in enumerate(SIZES):
                features = FEATURES[(i + j + k) % len(FEATURES)]
                chosen = k == (2 * i + j) % (len(SIZES) - 1) and j != i % len(DTYPES)
                if EVERY or chosen:  # never the last one, which takes longest
                    text = f"{name}-{rows}-{keys}-{features}-{dtype}"
                    yield pytest.param(name, rows, keys, features, dtype, id=text)


@pytest.mark.parametrize(("name", "rows", "keys", "features", "dtype"), [*_at_sizes()])
def test_odd_sizes(name: str, rows: int, keys: int, features: int, dtype: torch.dtype) -> None:
    fields, more = KINDS[name]
    given = more(rows, keys)
    shapes = given.pop("shapes", ())
    x = operands(
        *shapes, heads=2, kv=1, rows=rows, keys=keys, features=features, dtype=dtype, **given
    )
    if name == "padding":
        x.captured[0] = x.captured[0].detach()
    of = spec(**fields, dtype=dtype)
    exact = Operands(*(wide(part) for part in (x.q, x.k, x.v, x.captured)))
    _assert_twice(
        outcome(generated, of, x), outcome(reference, of, x), outcome(reference, of, exact)
    )


def _assert_twice(ours: Run, theirs: Run, exact: Run) -> None:
    """`assert_near`, with room for roundings of the largest number alone."""
    for kind in ("outputs", "grads"):
        columns = [*zip(*(getattr(r, kind) for r in (ours, theirs, exact)), strict=True)]
        largest = max(float(z.nan_to_num(0, 0, 0).abs().max()) for _, _, z in columns)
        for i, (x, y, z) in enumerate(columns):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            assert torch.equal(x.isfinite(), y.isfinite())
            error, own = (float((t.double() - z).nan_to_num(0, 0, 0).abs().max()) for t in (x, y))
            allowed = FACTOR * own + ROUNDINGS[x.dtype] * largest
            assert error <= allowed, f"{kind}[{i}]: {error:.3g} from fp64, the reference {own:.3g}"
