"""Random spellings of attention are rewritten; perturbed ones keep their numbers.

`FUSER_EVERY=1` tries three times as many.
"""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings

from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import EVERY

from .random_attention import Case, attention_cases, perturbed_cases, sound_cases

TIMES = 3 if EVERY else 1
FIXED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def _check(case: Case, dtype: torch.dtype, grad: bool) -> Run:
    inputs = case.inputs(dtype)
    eager = run(case.fn, inputs, grad=grad)
    exact = run(case.fn, wide(inputs), grad=grad)
    ours = compiled(case.fn, inputs, grad=grad)
    assert_near(ours, eager, exact)
    return ours


@settings(FIXED, max_examples=20 * TIMES)
@given(case=sound_cases())
def test_sound_cases_are_rewritten_and_train(case: Case) -> None:
    ours = _check(case, torch.float32, True)
    assert ours.rewrites() == 1, ours.reasons()


@settings(FIXED, max_examples=20 * TIMES)
@given(case=perturbed_cases())
def test_perturbed_cases_keep_their_numbers(case: Case) -> None:
    _check(case, torch.float32, True)


@settings(FIXED, max_examples=14 * TIMES)
@given(case=attention_cases())
def test_inference_in_half_precision(case: Case) -> None:
    ours = _check(case, torch.bfloat16, False)
    assert not case.is_attention or ours.rewrites() == 1, ours.reasons()
