"""A mixture on four ranks computes what one process does: results and all gradients."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.limits import Mixture
from benchmarks.moe import matrices, tokens
from tests.compiled import Run, assert_near

from .sharded import (
    CHOICES,
    EXPERTS,
    FEATURES,
    HIDDEN,
    RANKS,
    SCENARIOS,
    TOKENS,
    Chain,
    Found,
    Given,
    Scenario,
    Stacked,
)

ROOT = Path(__file__).parents[2]
SECONDS = 200
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo here"
)


def given() -> Given:
    """Tokens of which no rounding changes the experts."""
    torch.manual_seed(0)
    of = Mixture(RANKS * TOKENS, FEATURES, HIDDEN, EXPERTS, CHOICES)
    place = torch.device("cpu")
    x, router = tokens(of, place)
    return Given(x, torch.randn_like(x), router, *matrices(of, place, torch.float32))


def together(folder: Path) -> None:
    """Runs all ranks; none of them outlives this."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.moe.sharded", str(folder)]
    logs = [folder / f"{rank}.log" for rank in range(RANKS)]
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                ranks.append(
                    subprocess.Popen(
                        [*command, str(rank)], cwd=ROOT, env=environment, stdout=file, stderr=file
                    )
                )
        end = time.monotonic() + SECONDS
        codes = [rank.wait(max(0.0, end - time.monotonic())) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    texts = [log.read_text()[-3000:] for log, code in zip(logs, codes, strict=True) if code]
    assert not texts, "\n\n".join(texts)


def alone(found: Found, start: Given, dtype: torch.dtype) -> Run:
    """The same step in one process and in eager, its parameters in the order of what was found."""
    module = (Stacked if "gate_up" in found.parameters else Chain)(start.to(dtype))
    x = start.x.to(dtype).clone().requires_grad_()
    out = module(x)
    out.backward(start.cotangent.to(dtype))
    parameters = dict(module.named_parameters())
    grads: list[Tensor | None] = [x.grad, *(parameters[name].grad for name in found.parameters)]
    return Run([out.detach()], grads)


def joined(found: Sequence[Found], scenario: Scenario) -> Run:
    """What all ranks found together; of what each of them has, the same."""
    for other in found[1:]:
        for name, grad in found[0].parameters.items():
            torch.testing.assert_close(other.parameters[name], grad, rtol=0, atol=0)
    parameters = list[Tensor | None](found[0].parameters.values())
    if scenario.everywhere:
        return Run([found[0].out], [found[0].x, *parameters])
    return Run([torch.cat([f.out for f in found])], [torch.cat([f.x for f in found]), *parameters])


def test_ranks_compute_what_one_process_does(tmp_path: Path) -> None:
    """They start once for all scenarios, since that takes longest."""
    whole = given()
    torch.save(vars(whole), tmp_path / "given.pt")
    together(tmp_path)
    for name, scenario in SCENARIOS.items():
        found = [Found(**torch.load(tmp_path / f"{name}-{rank}.pt")) for rank in range(RANKS)]
        rewritten = [scenario.pattern] * scenario.rewrites
        assert [f.rewritten for f in found] == [rewritten] * RANKS, (name, found[0].reasons)
        told = [scenario.reason in "; ".join(f.reasons) for f in found]
        assert all(told), (name, found[0].reasons)
        start = whole.to(scenario.dtype)
        exact = alone(found[0], start, torch.float64)
        try:
            assert_near(joined(found, scenario), alone(found[0], start, scenario.dtype), exact)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
