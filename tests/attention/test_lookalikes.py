"""What resembles attention is left alone, with the reason, or rewritten without a difference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import Run, assert_near, compiled, run, wide

from .cases import NO_ANCHOR, LookAlike
from .lookalikes import LOOKALIKES

OVERFLOWS = "exponentials_overflow"
MODES = [
    (case, grad)
    for case in LOOKALIKES
    for grad in (False, True)
    if (case.trains or not grad) and case.name != OVERFLOWS
]
IDS = [f"{case.name}-{'training' if grad else 'inference'}" for case, grad in MODES]
# A drawn number read in Python breaks the graph, which Dynamo tells the user.
pytestmark = pytest.mark.filterwarnings("ignore:Graph break")


def _is_declined(case: LookAlike, grad: bool) -> bool:
    return bool(case.reason) and (grad or not case.only_training)


@pytest.mark.parametrize(("case", "grad"), MODES, ids=IDS)
def test_numbers_and_reason(case: LookAlike, grad: bool) -> None:
    """Outputs and gradients as in eager; the stated reason where it must be declined."""
    dtype = torch.float32
    ours = compiled(case.program(dtype), case.inputs(dtype), grad=grad)
    if _is_declined(case, grad):
        assert ours.rewrites() == 0, ours.record.rewritten
        wanted = "" if case.reason == NO_ANCHOR else case.reason
        assert wanted in ours.reasons()
        assert case.reason != NO_ANCHOR or ours.record.near_misses == []
    if case.random and ours.rewrites():
        return  # drawn in another order; see test_dropout_is_right_on_average
    eager = run(case.program(dtype), case.inputs(dtype), grad=grad)
    exact = eager if case.random else _exact(case, grad)
    assert_near(ours, eager, exact)


def _exact(case: LookAlike, grad: bool) -> Run:
    dtype = torch.float32
    return run(wide(case.program(dtype)), wide(case.inputs(dtype)), grad=grad)


@pytest.mark.parametrize("name", ["softmax_over_queries", "scores_returned", "last_key_dropped"])
def test_half_precision(name: str) -> None:
    """A decline does not depend on the dtype."""
    (case,) = (c for c in LOOKALIKES if c.name == name)
    dtype = torch.bfloat16
    ours = compiled(case.fn, case.inputs(dtype))
    assert_near(ours, run(case.fn, case.inputs(dtype)), run(case.fn, wide(case.inputs(dtype))))
    assert ours.rewrites() == 0
    assert case.reason in ours.reasons()


def test_most_are_declined() -> None:
    assert sum(_is_declined(case, grad=True) for case in LOOKALIKES) >= 100
    assert sum(_is_declined(case, grad=False) for case in LOOKALIKES) >= 100


def test_exponentials_that_overflow_do_so_no_longer() -> None:
    """exp(s) / sum(exp(s)) is accepted as a softmax: the same function of real numbers.

    The rewrite subtracts the maximum, so that it stays finite and near to fp64 where eager's own
    fp32 exponentials overflow to NaN.
    """
    (case,) = (c for c in LOOKALIKES if c.name == OVERFLOWS)
    inputs = case.inputs(torch.float32)
    ours, eager, exact = compiled(case.fn, inputs), run(case.fn, inputs), _exact(case, False)
    assert ours.rewrites() == 1
    (found,), (theirs,), (expected,) = ours.outputs, eager.outputs, exact.outputs
    assert theirs.isnan().any()
    assert expected.isfinite().all()
    assert (found - expected).abs().max() <= 2e-4 * expected.abs().max()
    safe = theirs.isfinite()
    torch.testing.assert_close(found[safe], theirs[safe], rtol=1e-4, atol=1e-4)


def test_dropout_is_right_on_average() -> None:
    """Probabilities are dropped at the stated rate, anew in each call, and scaled up."""

    def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout((q @ k.mT).softmax(-1), 0.3, training=True) @ v

    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, 2, 5, 4, generator=generator) for _ in range(2))
    v = torch.eye(5).expand(1, 2, 5, 5)  # the output is the dropped probabilities themselves
    ours = compiled(dropped, (q, k, v))
    assert [r.lowering for r in ours.record.rewritten] == ["reference"]
    settings = {"fuser.inner": "aot_eager", "fuser.policy": "always", "fuser.strict": True}
    target = torch.compile(dropped, backend="fuser", options=settings)
    torch.manual_seed(0)
    draws = torch.stack([target(q, k, v) for _ in range(400)])
    p = (q @ k.mT).softmax(-1)
    kept = draws != 0
    assert abs(kept.double().mean().item() - 0.7) < 0.01
    torch.testing.assert_close(draws[kept], (p / 0.7).expand_as(draws)[kept])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), p, rtol=0.2, atol=2e-2)
