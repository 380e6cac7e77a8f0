"""What is not finite: lost where an expert that was not chosen made it, and nowhere else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compiled import compiled, run

from .capacities import Capacity, WithBiases
from .chains import ResidualFirst
from .forms import FEATURES, DenseEinsum, Gathered, GatheredResults, Mixture, Sorted
from .sorting import AddedToTokens

ATEN: dict[str, Any] = {"fuser.lowering": "aten", "inner": "eager"}
DENSE: list[type[Mixture]] = [DenseEinsum, ResidualFirst, GatheredResults, Capacity]
SPARSE: list[type[Mixture]] = [Gathered, Sorted, AddedToTokens]


def chosen_twice(module: Mixture, x: Tensor) -> None:
    """Tokens with a positive first feature choose experts 0 and 1, others 2 and 3."""
    with torch.no_grad():
        module.gate.weight.zero_()
        module.gate.weight[:, 0] = torch.tensor([4.0, 3.0, -3.0, -4.0])
        x[:, 0] = torch.linspace(-2.0, 2.0, len(x))


def broken(module: Mixture) -> None:
    """Expert 3 makes NaN of everything, and expert 2 infinity of much."""
    with torch.no_grad():
        for tensors in (module.up, module.gate_up):
            tensors[3], tensors[2] = math.nan, 3e38
        for parameter in module.experts[3].parameters():
            parameter.fill_(math.nan)


@pytest.mark.parametrize("form", DENSE, ids=lambda f: f.__name__)
def test_dense_forms_may_be_declined(form: type[Mixture]) -> None:
    module, x = form().eval(), torch.randn(6, FEATURES)
    ours = compiled(module, (x,), **ATEN, **{"fuser.dense_moe": False})
    assert ours.rewrites("moe") == 0
    assert "a NaN or infinity of what was not chosen is in the result" in ours.reasons()


@pytest.mark.parametrize("form", SPARSE, ids=lambda f: f.__name__)
def test_sparse_forms_keep_what_is_not_finite(form: type[Mixture]) -> None:
    module, x = form().eval(), torch.randn(8, FEATURES)
    chosen_twice(module, x)
    broken(module)
    ours = compiled(module, (x,), **ATEN, **{"fuser.dense_moe": False})
    assert ours.rewrites("moe") == 1, ours.reasons()
    ((out,), (eager,)) = ours.outputs, run(module, (x,)).outputs
    assert torch.equal(out.isnan(), eager.isnan())
    assert torch.equal(out.isposinf(), eager.isposinf())
    assert bool(out.isnan().any())
    assert not bool(out[4:].isnan().any())


@pytest.mark.parametrize("form", [DenseEinsum, ResidualFirst], ids=lambda f: f.__name__)
def test_dense_forms_lose_those_of_others_alone(form: type[Mixture]) -> None:
    """Tokens that chose a broken expert are NaN; for others nothing is."""
    module, x = form().eval(), torch.randn(8, FEATURES)
    chosen_twice(module, x)
    with torch.no_grad():
        module.up[3] = module.gate_up[3] = math.nan
        for parameter in module.experts[3].parameters():
            parameter.fill_(math.nan)
    ours = compiled(module, (x,), **ATEN)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert bool(run(module, (x,)).outputs[0].isnan().all())
    (out,) = ours.outputs
    assert bool(out[:4].isnan().all())
    assert bool(out[4:].isfinite().all())


@pytest.mark.parametrize("lowering", ["aten", "reference"])
def test_what_is_dropped_is_not_computed(lowering: str) -> None:
    """A token without a place gives zeros, although its expert would make infinities of it."""
    module, x = WithBiases().eval(), torch.randn(8, FEATURES).abs()
    with torch.no_grad():
        module.gate.weight.zero_()
        module.gate_up.abs_()
        x[4:] = 3e38
    x.requires_grad_()
    ours = compiled(module, (x,), grad=True, **{"fuser.lowering": lowering})
    assert ours.rewrites("moe") == 1, ours.reasons()
    (out,) = ours.outputs
    assert bool(out[:4].isfinite().all())
    assert torch.equal(out[4:], torch.zeros_like(out[4:]))
