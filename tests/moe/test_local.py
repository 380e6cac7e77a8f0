"""Experts whose rows come in runs are one region, forward and backward, however many they are.

Each form in one of the lowerings, every second look-alike with gradients; `FUSER_EVERY=1` takes
all.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

import fuser
from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import EVERY
from tests.inner import CATCH, caught, operators

from .forms import Sorted
from .lookalikes_runs import LOOKALIKES, LookAlike
from .runs import (
    COUNTS,
    FEATURES,
    GROUPED,
    IN_TURN,
    READS,
    EndsGiven,
    Gated,
    InTurn,
    InTurnTitan,
    Local,
    Titan,
)

LOWERINGS = ("aten", "reference", "triton")
CASES = [
    (form, lowering)
    for i, form in enumerate([*GROUPED, *IN_TURN])
    for j, lowering in enumerate(LOWERINGS)
    if EVERY or i % 3 == j
]
ALIKE = [
    pytest.param(case, case.grad and (EVERY or i % 2 == 0), id=case.module.__name__)
    for i, case in enumerate(LOOKALIKES)
]


def given(form: type[Local], counts: tuple[int, ...] = COUNTS) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    rows = torch.randn(sum(counts) + form.extra, FEATURES, requires_grad=True)
    return rows, torch.tensor(counts)


def whole(module: Local, args: tuple[Tensor, ...], **options: Any) -> Run:
    with torch._dynamo.config.patch(READS):
        return compiled(module, args, grad=True, **options)


def check(module: Local, args: tuple[Tensor, ...], **options: Any) -> Run:
    """One region, as near to fp64 as eager is."""
    ours = whole(module, args, **options)
    assert ours.rewrites("moe") == 1, ours.reasons()
    exact = run(wide(module), wide(args), grad=True)
    assert_near(ours, run(module, args, grad=True), exact)
    return ours


@pytest.mark.parametrize(("form", "lowering"), CASES)
def test_forms(form: type[Local], lowering: str) -> None:
    graphs = caught()
    check(form(), given(form), inner=CATCH, **{"fuser.lowering": lowering})
    left = operators(graphs[0])
    names = {"aten": "grouped_moe", "reference": "moe", "triton": "generated_moe"}
    assert left[f"fuser.{names[lowering]}"] == 1
    gone = {"_grouped_mm", "grouped_mm", "grouped_mm_fallback", "split", "matmul", "linear"}
    gone.add("repeat_interleave")
    assert not gone & set(left)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 0, 9), (9, 0, 0)])
def test_every_length_of_runs(counts: tuple[int, ...], lowering: str) -> None:
    check(EndsGiven(), given(EndsGiven, counts), **{"fuser.lowering": lowering})


@pytest.mark.parametrize("form", [Gated, InTurn])
def test_no_rows_at_all(form: type[Local]) -> None:
    check(form(), given(form, (0, 0, 0)), **{"fuser.lowering": "aten"})


@pytest.mark.parametrize("lowering", LOWERINGS[:2])
@pytest.mark.parametrize("counts", [(8, -5, 4), (3, 20, -20), (20, 0, 0)])
def test_ends_that_decrease_or_are_too_large(counts: tuple[int, ...], lowering: str) -> None:
    """The last run that has a row counts, as in eager on a CPU."""
    module, (rows, _) = EndsGiven(), given(EndsGiven)
    args = (rows.detach(), torch.tensor(counts))
    options: dict[str, Any] = {"fuser.lowering": lowering, "inner": "eager"}
    ours = compiled(module, args, **options)
    assert ours.rewrites("moe") == 1
    assert_near(ours, run(module, args), run(wide(module), wide(args)))


def test_generated_kernels_stay_inside_whatever_ends_are() -> None:
    module, (rows, _) = EndsGiven(), given(EndsGiven)
    options: dict[str, Any] = {"fuser.lowering": "triton", "inner": "eager"}
    args = (rows.detach(), torch.tensor((30, -28, 1)))
    found = compiled(module, args, **options)
    assert found.rewrites("moe") == 1
    first = run(module, (rows.detach(), torch.tensor((30, 0, 0))))
    torch.testing.assert_close(found.outputs[0], first.outputs[0])


@pytest.mark.parametrize("form", [Titan, InTurnTitan])
def test_counts_are_read_while_running(form: type[Local]) -> None:
    """One graph for all."""
    module, graphs = form(), caught()
    (rows, _), options = given(form), {"fuser.policy": "always", "fuser.inner": CATCH}
    call = torch.compile(module, backend="fuser", options=options)
    with torch._dynamo.config.patch(READS):
        for counts in ((5, 0, 7), (0, 12, 0), (4, 4, 4)):
            args = (rows.detach(), torch.tensor(counts))
            ours = Run([call(*args).detach()])
            assert_near(ours, run(module, args), run(wide(module), wide(args)))
    assert len(graphs) == 1


def test_counts_that_eager_refuses() -> None:
    """What is cut elsewhere is an error still."""
    (rows, _), counts = given(InTurn), torch.tensor((5, 1, 7))
    with pytest.raises(RuntimeError):
        InTurn()(rows, counts)
    with pytest.raises(RuntimeError):
        whole(InTurn(), (rows, counts), **{"fuser.lowering": "aten"})


def test_by_default_rows_that_are_sorted_are_left() -> None:
    args = given(Gated)
    report = fuser.explain(Gated(), *args)
    (left,) = (miss for miss in report.left if miss.pattern.startswith("moe."))
    assert "rows are sorted by experts and multiplied in groups already" in left.reason


@pytest.mark.parametrize(("case", "grad"), ALIKE)
def test_lookalikes(case: LookAlike, grad: bool) -> None:
    module, args = case.module(), given(case.module)
    with torch._dynamo.config.patch(READS):
        ours = compiled(module, args, grad=grad)
    assert ours.rewrites("moe") == 0
    assert case.reason in ours.reasons()
    assert bool(case.reason) == ("moe." in str(ours.record.near_misses)), ours.reasons()
    exact = run(wide(module), wide(args), grad=grad)
    assert_near(ours, run(module, args, grad=grad), exact)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here")
def test_places_that_other_ranks_fill_stay_a_batched_product() -> None:
    """It is said of no other batched product."""
    rows, up, down = torch.randn(3, 4, 8), torch.randn(3, 8, 6), torch.randn(3, 6, 8)

    def experts(rows: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(rows, up).relu(), down)

    def exchanged(rows: Tensor, *matrices: Tensor) -> Tensor:
        rows = all_to_all_single_autograd(rows, None, None, dist.group.WORLD)
        return all_to_all_single_autograd(experts(rows, *matrices), None, None, dist.group.WORLD)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        runs = [compiled(fn, (rows, up, down), inner="eager") for fn in (exchanged, experts)]
    finally:
        dist.destroy_process_group()
    assert [ours.rewrites("moe") for ours in runs] == [0, 0]
    assert ["as many places" in ours.reasons() for ours in runs] == [True, False]


@pytest.mark.parametrize("policy", ["auto", "always"])
def test_nothing_is_said_of_a_part_of_a_mixture(policy: str) -> None:
    module, x = Sorted().eval(), torch.randn(10, 16)
    report = fuser.explain(module, x, options={"fuser.policy": policy})
    told = [miss.pattern for miss in (*report.declined, *report.left)]
    expected = ["moe.mixture", "router.top_k"] if policy == "auto" else []
    families = ("moe.", "router.")
    assert sorted(p for p in told if p.startswith(families)) == expected
