"""Chains around norms at the sizes of GPUs, shrunk and on a CPU: limits, numbers, targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import limits, norm_gpu, runner, targets
from benchmarks.cases import Workload, reference
from benchmarks.providers import EAGER, FUSER_TRITON, INDUCTOR, LIGER, PROVIDERS, Provider, choose
from tests.every import some
from tests.fake_gpu import FakeGpu

CPU = torch.device("cpu")
H200 = limits.RATES["H200"]
PROGRAMS = norm_gpu.programs(quick=True)
BRIEF = runner.Effort(min_rounds=1, max_rounds=1, min_sample_ms=0.0)
LEFT = ("cross_entropy",)
"""A loss whose logits are given."""


def contestants() -> list[Provider]:
    """Eager, Inductor and generated kernels, with compilers that take no time."""
    quick = {"fuser.inner": "aot_eager", "fuser.strict": True}
    inductor = replace(PROVIDERS[INDUCTOR], backend="aot_eager")
    return [PROVIDERS[EAGER], inductor, *choose([FUSER_TRITON], quick)]


def workload(name: str, *, quick: bool = True) -> Workload:
    (found,) = (w for w in norm_gpu.workloads(quick) if w.name == name)
    return found


@pytest.mark.parametrize(
    ("name", "mode", "limit_ms"),
    [
        ("residual_rms", "forward", 0.125),
        ("layer_norm", "full", 0.187 + 0.125),
        ("rms_norm", "full", 3.0 + 2.0),
        ("group_norm_video", "forward", 0.234),
        ("group_norm_last", "forward", 0.187),
        ("qk_norm_rope", "forward", 0.026),
        ("adaptive", "forward", 0.026),
        ("swiglu", "forward", 0.328),
        ("cross_entropy", "full", 1.47),
        ("rms_norm_fp8", "forward", 0.0029),
    ],
)
def test_limits_are_those_of_the_list(name: str, mode: str, limit_ms: float) -> None:
    work = workload(name, quick=False)
    assert work.work is not None
    assert work.work(torch.bfloat16, mode).limit_ms(H200) == pytest.approx(limit_ms, rel=0.03)
    assert mode in work.modes
    assert (name, mode) in targets.NORM_ON_GPU or name == "qk_norm_rope"
    assert 14 <= PROGRAMS[name].row <= 21


@pytest.mark.parametrize("name", some(list(PROGRAMS), 5))
def test_every_contestant_computes_the_workload(name: str) -> None:
    """All gradients too; a generated kernel is one rewrite, or one of q and one of k."""
    work = workload(name)
    mode = work.modes[-1]
    result = runner.measure(work, mode, torch.float32, FakeGpu(), contestants(), BRIEF)
    assert not {n: m.failure for n, m in result.measures.items() if m.failure}
    bound = 0.1 if name == "rms_norm_fp8" else 2e-6  # a rounding to fp8 may fall on either side
    assert all(m.error is not None and m.error < bound for m in result.measures.values())
    rewrites = result.measures[FUSER_TRITON].rewrites
    assert rewrites is not None
    assert bool(rewrites) == (name not in LEFT)


def test_fp64_of_the_first_rows_agrees_with_that_of_all() -> None:
    program = PROGRAMS["rms_norm"]
    torch.manual_seed(0)
    part = norm_gpu.build(program, torch.float32, CPU, "full")
    whole = replace(part, part=None, double=None)
    assert part.part is not None
    got, want = reference(part), part.part(reference(whole))
    assert [x.shape for x in got] == [(4, 72), (4, 72)]
    assert whole.error(got, want) < 1e-12


def test_liger_has_a_port_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr(norm_gpu.ports_norm, "installed", lambda there=there: there)
        ported = {
            name
            for name, program in PROGRAMS.items()
            if LIGER in norm_gpu.build(program, torch.float32, CPU, program.modes[0]).ports
        }
        assert ported == ({n for n, p in PROGRAMS.items() if p.port} if there else set())


def test_the_family_is_another_on_a_gpu() -> None:
    on_gpu, on_cpu = (command.family_of("norm", kind) for kind in ("cuda", "cpu"))
    assert [w.name for w in on_gpu.workloads(True)] == list(PROGRAMS)
    assert not {w.name for w in on_cpu.workloads(True)} & {"rms_norm_fp8", "qk_norm_rope"}
    assert LIGER in on_gpu.ports
    assert LIGER not in on_cpu.ports
