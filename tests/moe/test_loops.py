"""Loops over experts become one region: results, all gradients, and every routing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import EVERY, some
from tests.inner import CATCH, caught, operators

from .flat import FLAT, FLAT_LOOKALIKES
from .forms import EXPERTS, FEATURES, TOKENS, Mixture
from .lookalikes import LookAlike
from .loop_lookalikes import LOOP_LOOKALIKES
from .loops import (
    CAPTURE,
    LOOPS,
    MistralLoop,
    MixtralLoop,
    SharedInPlace,
    StackedLoop,
    SwitchLoop,
    Top1Mask,
    Top1Nonzero,
    Unweighted,
)

GROUPED: dict[str, Any] = {"fuser.lowering": "aten", "inner": "eager"}
"""Run node by node, which compiles in half the time."""
REFERENCE: dict[str, Any] = {**GROUPED, "fuser.lowering": "reference"}
KINDS = [MixtralLoop, MistralLoop, Top1Nonzero, Top1Mask]
SOME = some(KINDS, 2, 1)
HALVES = [torch.bfloat16, torch.float16] if EVERY else [torch.bfloat16]
ALIKE = [case for case in (*LOOP_LOOKALIKES, *FLAT_LOOKALIKES) if EVERY or case.reason]


def captured(module: Mixture, x: Tensor, **options: Any) -> Run:
    with torch._dynamo.config.patch(CAPTURE):
        return compiled(module, (x,), grad=True, **options)


def check(module: Mixture, x: Tensor, **options: Any) -> Run:
    """One region, as near to fp64 as eager is."""
    ours = captured(module, x, **options)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))
    return ours


@pytest.mark.parametrize("form", [*LOOPS, *FLAT], ids=lambda f: f.__name__)
def test_loops(form: type[Mixture]) -> None:
    torch.manual_seed(2)
    module, x = form().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    graphs = caught()
    check(module, x, **{**GROUPED, "inner": CATCH})
    assert len(graphs) == 1
    left = operators(graphs[0])
    assert left["fuser.grouped_moe"] == 1
    gone = {"nonzero", "index_add", "setitem", "_assert_scalar", "aten._assert_scalar"}
    assert not gone & set(left)
    shared = 2 if form is SharedInPlace else 0
    assert left["linear"] == 1 + shared  # the router's


@pytest.mark.parametrize("form", SOME, ids=lambda f: f.__name__)
def test_reference(form: type[Mixture]) -> None:
    torch.manual_seed(2)
    check(form().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True), **REFERENCE)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", [MixtralLoop, MistralLoop, StackedLoop], ids=lambda f: f.__name__)
def test_half_precision(form: type[Mixture], dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x = torch.randn(TOKENS, FEATURES, dtype=dtype, requires_grad=True)
    check(form().eval().to(dtype), x, **GROUPED)


@pytest.mark.parametrize("form", [MixtralLoop, Unweighted, SwitchLoop], ids=lambda f: f.__name__)
def test_generated_kernels(form: type[Mixture]) -> None:
    torch.manual_seed(2)
    x = torch.randn(TOKENS, FEATURES, requires_grad=True)
    ours = check(form().eval(), x, **{"fuser.lowering": "triton"})
    assert {r.lowering for r in ours.record.rewritten} == {"triton, interpreted"}


def test_stacked_matrices_stay_stacked() -> None:
    """One tensor for all experts, whose gradient is written once and not once an expert."""
    ours = captured(StackedLoop().eval(), torch.randn(TOKENS, FEATURES), **GROUPED)
    (rewritten,) = (r for r in ours.record.rewritten if r.pattern == "moe.loop")
    assert '"separate":false' in "".join(rewritten.added)


@pytest.mark.parametrize("expert", range(EXPERTS) if EVERY else [3])
@pytest.mark.parametrize("form", KINDS, ids=lambda f: f.__name__)
def test_all_tokens_to_the_same_experts(form: type[Mixture], expert: int) -> None:
    module, x = form().eval(), torch.rand(6, FEATURES, requires_grad=True)
    with torch.no_grad():
        module.gate.weight.fill_(-1.0)
        module.gate.weight[[expert, (expert + 1) % EXPERTS]] = torch.tensor([[2.0], [1.0]])
    check(module, x, **GROUPED)


@pytest.mark.parametrize("form", KINDS, ids=lambda f: f.__name__)
def test_no_tokens(form: type[Mixture]) -> None:
    """Dynamo makes a graph for them alone, in which there is nothing to gain."""
    module, x = form().eval(), torch.zeros(0, FEATURES, requires_grad=True)
    ours, eager = captured(module, x, **GROUPED), run(module, (x,), grad=True)
    assert_near(ours, eager, run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("form", SOME, ids=lambda f: f.__name__)
def test_one_compile_for_all_numbers_of_tokens(form: type[Mixture]) -> None:
    torch._dynamo.reset()
    module = form().eval()
    options = {
        "fuser.inner": "aot_eager",
        "fuser.policy": "always",
        "fuser.strict": True,
        "fuser.lowering": "aten",
    }
    counters["fuser"].clear()
    with torch._dynamo.config.patch(CAPTURE):
        fn = torch.compile(module, backend="fuser", options=options, dynamic=True)
        fn(torch.randn(7, FEATURES))
        assert counters["fuser"]["moe.loop"] == 1
        with torch.compiler.set_stance("fail_on_recompile"):
            for count in (3, 9, 12):
                x = torch.randn(count, FEATURES)
                torch.testing.assert_close(fn(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", SOME, ids=lambda f: f.__name__)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_was(form: type[Mixture], bad: float) -> None:
    """Of one expert alone: only tokens that chose it have it, as in eager."""
    torch.manual_seed(2)
    module, x = form().eval(), torch.randn(TOKENS, FEATURES)
    with torch.no_grad():
        next(module.experts[1].parameters())[0, 0] = bad
    ours = captured(module, x, **GROUPED)
    assert ours.rewrites("moe") == 1
    (out,), (eager,) = ours.outputs, run(module, (x,)).outputs
    assert 0 < int(eager.isfinite().sum()) < eager.numel()
    assert torch.equal(out.isnan(), eager.isnan())
    assert torch.equal(out.isinf(), eager.isinf())


@pytest.mark.parametrize("case", ALIKE, ids=lambda c: c.module.__name__)
def test_lookalikes(case: LookAlike) -> None:
    torch.manual_seed(2)
    module, x = case.module().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    ours = captured(module, x, inner="eager")
    assert ours.record.graphs == 1
    assert ours.rewrites("moe") == 0
    assert case.reason in ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))
