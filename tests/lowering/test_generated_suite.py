"""Spellings of attention by generated kernels, in Triton's interpreter, beside the reference.

The interpreter is slow: every third one, in training. `FUSER_EVERY=1` takes all, in both modes.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.attention.cases import Spelling
from tests.attention.spellings import SPELLINGS
from tests.compiled import assert_near, compiled, run, wide
from tests.lowering.generated import FACTOR

TRITON = {"fuser.lowering": "triton"}
REPLACED = "replacement"
"""The lowering of a composite that is replaced as a whole, with the library's call in it."""
EVERY = os.environ.get("FUSER_EVERY") == "1"
MODES = [
    (s, grad)
    for s in (SPELLINGS if EVERY else SPELLINGS[::3])
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SPELLINGS if EVERY else SPELLINGS[1::6], ids=lambda s: s.name)
def test_half_precision(case: Spelling, dtype: torch.dtype) -> None:
    _check(case, dtype, case.trains and dtype is torch.bfloat16)
