"""How many tokens there are, and where they go, changes with every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from tests.compiled import assert_near, compiled, run, wide

from .capacities import BestTwo, Capacity
from .chains import ResidualFirst
from .dense_weights import Placed, WeightOnHidden
from .forms import (
    EXPERTS,
    FEATURES,
    Chain,
    DenseBmm,
    DenseEinsum,
    Gathered,
    GatheredFlat,
    Mixture,
    Sorted,
    Stack,
    WeightFirst,
)
from .gathering import ByEmbedding, InOut
from .sorting import AddedToTokens

OPTIONS: dict[str, Any] = {"fuser.lowering": "aten"}
FORMS: list[type[Mixture]] = [
    Chain, Stack, DenseEinsum, DenseBmm, WeightFirst, GatheredFlat, Sorted,
]  # fmt: skip
MORE: list[type[Mixture]] = [ResidualFirst, Placed, ByEmbedding, AddedToTokens, BestTwo]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_one_token(form: type[Mixture]) -> None:
    module, x = form().eval(), torch.randn(1, FEATURES, requires_grad=True)
    ours = compiled(module, (x,), grad=True, **OPTIONS)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("form", [Chain, Gathered], ids=lambda f: f.__name__)
def test_no_token(form: type[Mixture]) -> None:
    module, x = form().eval(), torch.randn(0, FEATURES, requires_grad=True)
    ours, eager = compiled(module, (x,), grad=True, **OPTIONS), run(module, (x,), grad=True)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert ours.outputs[0].shape == eager.outputs[0].shape
    for a, b in zip(ours.grads, eager.grads, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.equal(a, b)


def test_a_mean_over_no_token() -> None:
    def loads(x: Tensor, weight: Tensor) -> Tensor:
        return F.relu(x @ weight.t()).mean(0)

    args = torch.randn(0, FEATURES), torch.randn(EXPERTS, FEATURES)
    ours = compiled(loads, args, **OPTIONS)
    assert ours.rewrites("moe") == 0
    assert ours.outputs[0].isnan().all()


@pytest.mark.parametrize("form", [*FORMS, *MORE], ids=lambda f: f.__name__)
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


class Twice(Gathered):
    """Many tokens choose an expert twice."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, chosen // 2


class Backwards(GatheredFlat):
    """Indices are counted from the end."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, chosen - EXPERTS


@pytest.mark.parametrize("form", [Twice, Backwards], ids=lambda f: f.__name__)
def test_other_indices(form: type[Mixture]) -> None:
    module, x = form().eval(), torch.randn(6, FEATURES, requires_grad=True)
    ours = compiled(module, (x,), grad=True, **OPTIONS)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("form", [DenseEinsum, Gathered, InOut, Capacity], ids=lambda f: f.__name__)
def test_matrices_in_another_order_of_memory(form: type[Mixture]) -> None:
    """Half of them frozen, too."""
    module, x = form().eval(), torch.randn(6, FEATURES, requires_grad=True)
    for name in ("up", "down", "gate_up"):
        matrices = getattr(module, name).detach().mT.contiguous().mT
        setattr(module, name, torch.nn.Parameter(matrices, requires_grad=name != "down"))
    ours = compiled(module, (x,), grad=True, **OPTIONS)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize(
    "form", [ResidualFirst, WeightOnHidden, Capacity], ids=lambda f: f.__name__
)
def test_autocast(form: type[Mixture]) -> None:
    def cast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x)

    torch.manual_seed(2)
    module, x = form().eval(), torch.randn(10, FEATURES, requires_grad=True)
    ours, eager = compiled(cast, (x,), grad=True, **OPTIONS), run(cast, (x,), grad=True)
    assert ours.rewrites("moe") == 1, ours.reasons()
    exact = run(wide(module), wide((x,)), grad=True)
    for a, b, c in zip(ours.outputs, eager.outputs, exact.outputs, strict=True):
        assert a.dtype == b.dtype
        assert (a - c).abs().max() <= 2 * (b - c).abs().max()


def test_experts_that_share_their_tensors() -> None:
    module, x = Stack().eval(), torch.randn(6, FEATURES, requires_grad=True)
    module.experts[2] = module.experts[0]
    ours = compiled(module, (x,), grad=True, **OPTIONS)
    assert ours.rewrites("moe") == 1
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))
