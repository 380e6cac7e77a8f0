"""What resembles a mixture is left alone, with the reason, and its numbers stay eager's.

Every second one with gradients; `FUSER_EVERY=1` takes all so.
"""

from __future__ import annotations

import pytest
import torch

from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY

from .arranged import LOOK_ALIKES as ARRANGED
from .choice_lookalikes import LOOK_ALIKES as CHOICES
from .forms import FEATURES, TOKENS
from .lookalikes import LOOKALIKES, LookAlike
from .lookalikes_places import PLACES
from .lookalikes_rows import ROWS
from .masked import LOOK_ALIKES as MASKED
from .picks import LOOK_ALIKES as PICKS
from .taken import LOOK_ALIKES as TAKEN
from .two_best import LOOK_ALIKES as TWO_BEST

EACH = [
    *LOOKALIKES, *PLACES, *ROWS, *PICKS, *MASKED, *TAKEN, *CHOICES, *ARRANGED, *TWO_BEST
]  # fmt: skip
CASES = [
    pytest.param(case, EVERY or i % 2 == 0, id=case.module.__name__) for i, case in enumerate(EACH)
]


@pytest.mark.parametrize(("case", "grad"), CASES)
def test_numbers_and_reason(case: LookAlike, grad: bool) -> None:
    torch.manual_seed(2)
    module, x = case.module().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    ours = compiled(module, (x,), grad=grad)
    assert ours.rewrites("moe") == case.parts
    assert case.reason in ours.reasons()
    assert_near(ours, run(module, (x,), grad=grad), run(wide(module), wide((x,)), grad=grad))
