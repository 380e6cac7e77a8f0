"""Every spelling of routing, weighting, sorting, sending and taking matrices is found, and right.

Each in one of the lowerings, every second one with gradients; `FUSER_EVERY=1` takes all.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY

from .arranged import ARRANGED
from .capacities import CAPACITIES
from .chains import CHAINS
from .dense_weights import DENSE_WEIGHTS
from .forms import FEATURES, TOKENS, Mixture
from .gathering import GATHERED
from .masked import MASKED
from .picks import PICKED
from .routers import ROUTERS
from .sorting import SORTED
from .taken import TAKEN
from .two_best import TWO_BEST

SPELLINGS = [
    *ARRANGED,
    *CAPACITIES,
    *CHAINS,
    *DENSE_WEIGHTS,
    *GATHERED,
    *MASKED,
    *PICKED,
    *ROUTERS,
    *SORTED,
    *TAKEN,
    *TWO_BEST,
]
LOWERINGS = ["aten", "reference"]
CASES = [
    pytest.param(form, lowering, grad, id=f"{form.__name__}-{lowering}")
    for i, form in enumerate(SPELLINGS)
    for j, lowering in enumerate(LOWERINGS)
    for grad in [EVERY or (i // 2) % 2 == 0 or form in CAPACITIES]
    if EVERY or i % 2 == j
]


@pytest.mark.parametrize(("form", "lowering", "grad"), CASES)
def test_spellings(form: type[Mixture], lowering: str, grad: bool) -> None:
    torch.manual_seed(2)
    module, x = form().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    options: dict[str, Any] = {"fuser.lowering": lowering}
    ours = compiled(module, (x,), grad=grad, **options)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=grad), run(wide(module), wide((x,)), grad=grad))
