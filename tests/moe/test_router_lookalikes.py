"""What resembles a router is left alone, or a part of it, with the reason; numbers stay eager's."""

from __future__ import annotations

import pytest

from tests.compiled import assert_near, compiled, run, wide

from .router_lookalikes import LOOKALIKES, LookAlike
from .test_route import logits


@pytest.mark.parametrize("case", LOOKALIKES, ids=lambda case: case.module.__name__)
def test_numbers_and_reason(case: LookAlike) -> None:
    module, x = case.module(), logits()
    ours = compiled(module, (x,), grad=True, **{"fuser.lowering": "triton"})
    assert ours.rewrites("router") == case.smaller, ours.reasons()
    assert case.reason in ours.reasons()
    assert ours.record.failures == []
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))
