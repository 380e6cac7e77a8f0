"""What resembles a mixture is left alone, with the reason, and its numbers stay eager's."""

from __future__ import annotations

import pytest
import torch

from tests.compiled import assert_near, compiled, run, wide

from .forms import FEATURES, TOKENS
from .lookalikes import LOOKALIKES, LookAlike
from .lookalikes_places import PLACES
from .lookalikes_rows import ROWS

ALL = [*LOOKALIKES, *PLACES, *ROWS]


@pytest.mark.parametrize("case", ALL, ids=lambda c: c.module.__name__)
def test_numbers_and_reason(case: LookAlike) -> None:
    torch.manual_seed(2)
    module, x = case.module().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    ours = compiled(module, (x,), grad=True)
    assert ours.rewrites("moe") == 0
    assert case.reason in ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))
