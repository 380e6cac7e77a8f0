"""The data itself: every case runs, trains and captures under Dynamo without any engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from .cases import LookAlike, Program, Spelling, evaluate, floats
from .lookalikes import LOOKALIKES
from .random_attention import Case, Plan, attention_cases, build, sound_cases
from .random_parts import NEEDS_EQUAL_SIZES, PERTURBATIONS, Sizes
from .spellings import SPELLINGS

CASES: tuple[Spelling | LookAlike, ...] = (*SPELLINGS, *LOOKALIKES)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small lose by sharing cores: 53 s against 210 s
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


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


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=attention_cases())
def test_random_cases_train(case: Case) -> None:
    """Drawn programs run forward and backward in both dtypes."""
    for dtype in DTYPES:
        assert floats(evaluate(case.fn, case.inputs(dtype), backward=False))
        evaluate(case.fn, case.inputs(dtype), backward=True)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=sound_cases())
def test_random_attention_is_finite(case: Case) -> None:
    """Drawn attention has no empty row."""
    results = evaluate(case.fn, case.inputs(torch.float32), backward=True)
    assert case.is_attention
    assert all(result.isfinite().all() for result in results if result is not None)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(case=attention_cases())
def test_random_cases_capture(case: Case) -> None:
    """Drawn programs are one Dynamo graph with the numbers of eager."""
    torch._dynamo.reset()
    expected = evaluate(case.fn, case.inputs(torch.float32), backward=True)
    results = evaluate(_capture(case.fn), case.inputs(torch.float32), backward=True)
    _same(results, expected)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbation_changes_numbers(name: str) -> None:
    """Each perturbation of one plain program changes an output or a gradient."""
    equal = name in NEEDS_EQUAL_SIZES
    sizes = Sizes(6, 3, 2, 6, 6, 6, 6) if equal else Sizes(2, 3, 2, 7, 9, 5, 4)
    fixed = ("bhsd", "expand", "operator", "multiply", ("bias",), "method", "none", "operator")
    sound, changed = (build(Plan(*fixed, False, sizes, kind)) for kind in ("none", name))
    results = evaluate(changed.fn, changed.inputs(torch.float64), backward=True)
    expected = evaluate(sound.fn, sound.inputs(torch.float64), backward=True)
    assert sound.is_attention
    assert not changed.is_attention
    if len(results) == len(expected):
        with pytest.raises(AssertionError):
            _same(results, expected)
