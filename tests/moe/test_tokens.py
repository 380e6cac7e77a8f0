"""How many tokens there are, and where they go, changes with every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.compiled import assert_near, compiled, run, wide
from tests.moe.forms import (
    EXPERTS,
    FEATURES,
    Chain,
    DenseBmm,
    DenseEinsum,
    GatheredFlat,
    Mixture,
    Sorted,
    Stack,
    WeightFirst,
)

OPTIONS: dict[str, Any] = {"fuser.lowering": "aten"}
FORMS = [Chain, Stack, DenseEinsum, DenseBmm, WeightFirst, GatheredFlat, Sorted]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_one_token(form: type[Mixture]) -> None:
    module, x = form().eval(), torch.randn(1, FEATURES, requires_grad=True)
    ours = compiled(module, (x,), grad=True, **OPTIONS)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_one_compile_for_all_numbers_of_tokens(form: type[Mixture]) -> None:
    """And for all routings: whoever an expert is chosen by, it is the same code."""
    torch._dynamo.reset()
    module = form().eval()
    options = {"fuser.inner": "aot_eager", "fuser.policy": "always", "fuser.strict": True}
    fn = torch.compile(module, backend="fuser", options={**options, **OPTIONS}, dynamic=True)
    counters["fuser"].clear()
    fn(torch.randn(7, FEATURES))
    assert counters["fuser"]["moe.mixture"] == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for count in (3, 9, 12):
            x = torch.randn(count, FEATURES)
            torch.testing.assert_close(fn(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expert", range(EXPERTS))
@pytest.mark.parametrize("form", [Chain, GatheredFlat], ids=lambda f: f.__name__)
def test_experts_without_tokens(form: type[Mixture], expert: int) -> None:
    """All tokens choose one pair of experts; the others' tensors get zeros."""
    module, x = form().eval(), torch.rand(6, FEATURES, requires_grad=True)
    with torch.no_grad():
        module.gate.weight.fill_(-1.0)
        module.gate.weight[[expert, (expert + 1) % EXPERTS]] = torch.tensor([[2.0], [1.0]])
    ours = compiled(module, (x,), grad=True, **OPTIONS)
    assert ours.rewrites("moe") == 1
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


def test_experts_that_share_their_tensors() -> None:
    module, x = Stack().eval(), torch.randn(6, FEATURES, requires_grad=True)
    module.experts[2] = module.experts[0]
    ours = compiled(module, (x,), grad=True, **OPTIONS)
    assert ours.rewrites("moe") == 1
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))
