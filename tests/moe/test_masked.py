"""Where a mask tells the experts of a token: all of them, some or none, and what is no number."""

from __future__ import annotations

import math

import pytest
import torch

from tests.compiled import assert_near, compiled, run, wide

from .forms import FEATURES, TOKENS, Mixture
from .masked import KthValue, LikelyEnough, OfLogits, Threshold, TiesAreKept

LOWERINGS = ["aten", "reference"]


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("form", [TiesAreKept, KthValue], ids=lambda f: f.__name__)
def test_equal_scores(form: type[Mixture], lowering: str) -> None:
    """A router that has not learned yet: every expert is as good as the k-th."""
    module, x = form().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    with torch.no_grad():
        module.gate.weight.zero_()
    ours = compiled(module, (x,), grad=True, **{"fuser.lowering": lowering})
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(
    ("form", "expected"), [(OfLogits, 0.0), (LikelyEnough, math.nan)], ids=lambda f: str(f)
)
def test_no_expert(form: type[Mixture], expected: float, lowering: str) -> None:
    """Zeros for a token that no expert is likely enough for; NaN where zero is divided by zero."""
    module, x = form().eval(), torch.randn(TOKENS, FEATURES).abs()
    with torch.no_grad():
        module.gate.weight.fill_(-0.5)
    ours, (eager,) = (
        compiled(module, (x,), **{"fuser.lowering": lowering}),
        run(module, (x,)).outputs,
    )
    assert ours.rewrites("moe") == 1, ours.reasons()
    for out in (ours.outputs[0], eager):
        torch.testing.assert_close(out, torch.full_like(out, expected), equal_nan=True)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_score_that_is_no_number(lowering: str) -> None:
    """The token has NaN, as in eager, and no other."""
    module, x = LikelyEnough().eval(), torch.randn(TOKENS, FEATURES)
    with torch.no_grad():
        module.gate.weight.fill_(0.5)
    x = x.abs()
    x[3, 0] = torch.nan
    ours, (eager,) = (
        compiled(module, (x,), **{"fuser.lowering": lowering}),
        run(module, (x,)).outputs,
    )
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert torch.equal(ours.outputs[0].isnan(), eager.isnan())
    assert int(eager.isnan().any(-1).sum()) == 1


def test_by_default_nothing_is_put_there() -> None:
    """How many rows there will be is not known while compiling."""
    module, x = Threshold().eval(), torch.randn(TOKENS, FEATURES)
    ours = compiled(module, (x,), policy="auto")
    assert ours.rewrites("moe") == 0
    assert "how many experts a token goes through is known while running alone" in ours.reasons()
