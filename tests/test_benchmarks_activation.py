"""Activations at sizes of a CPU, shrunk: numbers, and what is asked of them."""

from __future__ import annotations

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import targets
from benchmarks.cases import Workload
from benchmarks.figures import Measure, Result
from tests.compiled import assert_near, compiled, run, wide

FAMILY = command.family_of("activation", "cpu")


@pytest.mark.parametrize("work", FAMILY.workloads(True), ids=lambda work: work.name)
def test_each_is_one_region(work: Workload) -> None:
    case = work.build(torch.float32, torch.device("cpu"), "full")
    found = compiled(case.fn, case.args, grad=True)
    assert found.rewrites("activation") == 1, found.reasons()
    exact = run(case.fn, wide(case.args), grad=True)
    assert_near(found, run(case.fn, case.args, grad=True), exact)


def test_all_are_compared_with_inductor() -> None:
    work = FAMILY.workloads(False)[0]
    measures = {who: Measure([ms], error=0.0) for who, ms in (("inductor", 1.0), ("fuser", 1.25))}
    checks = FAMILY.checks([Result(work, "full", torch.bfloat16, measures)])
    (check,) = (c for c in checks if "inductor" in c.text)
    assert (check.value, check.bound, check.met) == (0.8, targets.NEVER_BELOW, False)
