"""The data itself: every case runs, trains and captures under Dynamo without any engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .cases import LookAlike, Program, Spelling, evaluate, floats
from .lookalikes import LOOKALIKES
from .spellings import SPELLINGS

CASES: tuple[Spelling | LookAlike, ...] = (*SPELLINGS, *LOOKALIKES)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def _same(left: list[Tensor | None], right: list[Tensor | None]) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5, equal_nan=True)


def _capture(fn: Program) -> Program:
    return torch.compile(fn, backend="eager", fullgraph=True, dynamic=False)


def test_names_are_unique() -> None:
    """Names identify cases in reports."""
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(SPELLINGS) >= 60
    assert len(LOOKALIKES) >= 50


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_runs(case: Spelling | LookAlike, dtype: torch.dtype) -> None:
    """Forward without gradients, and backward where the case trains."""
    assert floats(evaluate(case.program(dtype), case.inputs(dtype), backward=False))
    if case.trains:
        results = evaluate(case.program(dtype), case.inputs(dtype), backward=True)
        assert any(result is not None for result in results)


@pytest.mark.parametrize("case", SPELLINGS, ids=lambda case: case.name)
def test_spelling_is_attention(case: Spelling) -> None:
    """Outputs are finite, and equal to an independent function where one is given."""
    dtype = torch.float64
    results = evaluate(case.program(dtype), case.inputs(dtype), case.trains)
    assert all(result.isfinite().all() for result in results if result is not None)
    if case.equals is not None:
        expected = evaluate(case.equals, case.inputs(dtype), case.trains)
        torch.testing.assert_close(results, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_captures(case: Spelling | LookAlike) -> None:
    """One Dynamo graph with the numbers of eager."""
    dtype = torch.float32
    if isinstance(case, LookAlike) and not case.captures:
        pytest.skip("breaks the graph by design")
    expected = evaluate(case.program(dtype), case.inputs(dtype), case.trains)
    results = evaluate(_capture(case.program(dtype)), case.inputs(dtype), case.trains)
    if not (isinstance(case, LookAlike) and case.random):
        _same(results, expected)
