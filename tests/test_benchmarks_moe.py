"""Mixtures of experts, shrunk and on a CPU: limits, numbers, ports, what is written."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

import fuser
from benchmarks import __main__ as command
from benchmarks import devices, limits, moe, moe_gpu, ports_moe, runner
from benchmarks.cases import Case, Workload, reference, relative_error
from benchmarks.limits import Mixture
from benchmarks.providers import (
    EAGER,
    FUSER,
    FUSER_ALWAYS,
    GROUPED,
    INDUCTOR,
    LIGER,
    LOOP,
    PROVIDERS,
    Provider,
    choose,
)
from tests.fake_gpu import FakeGpu

CPU = torch.device("cpu")
H200 = limits.RATES["H200"]
PROGRAMS = moe_gpu.programs(quick=True)
BRIEF = runner.Effort(min_rounds=1, max_rounds=1, min_sample_ms=0.0)


def contestants() -> list[Provider]:
    """Everyone but Liger, with compilers that take no time."""
    quick = {"fuser.inner": "aot_eager", "fuser.strict": True}
    by_aot = [replace(PROVIDERS[name], backend="aot_eager") for name in (INDUCTOR, GROUPED)]
    return [PROVIDERS[EAGER], *by_aot, *choose([FUSER_ALWAYS], quick), PROVIDERS[LOOP]]


def workload(name: str) -> Workload:
    (found,) = (w for w in moe_gpu.workloads(quick=True) if w.name == name)
    return found


# -- the list of workloads


@pytest.mark.parametrize(
    ("name", "mode", "limit_ms"),
    [
        ("many_experts", "forward", 0.78),
        ("many_experts", "full", 2.35),
        ("few_chosen", "forward", 4.18),
        ("mixtral", "forward", 3.65),
        ("decode_1", "forward", 0.022),
        ("decode_16", "forward", 0.228),
        ("decode_128_gathered", "forward", 0.354),
    ],
)
def test_limits_are_those_of_the_list(name: str, mode: str, limit_ms: float) -> None:
    (found,) = (w for w in moe_gpu.workloads(quick=False) if w.name == name)
    assert found.work is not None
    assert found.work(torch.bfloat16, mode).limit_ms(H200) == pytest.approx(limit_ms, rel=0.03)


def test_names_are_unique() -> None:
    for workloads in (moe.workloads, moe_gpu.workloads):
        names = [w.name for w in workloads(quick=False)]
        assert len(set(names)) == len(names)


def test_all_sizes_on_a_cpu() -> None:
    found = {(w.config["E"], w.config["K"], w.x[1], w.modes) for w in moe.workloads(quick=False)}
    forward, both = ("forward",), ("forward", "full")
    modes = {1: forward, 16: forward, 512: both}
    assert found == {(e, k, t, modes[t]) for e, k in ((8, 2), (64, 8)) for t in modes}


# -- numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of", [moe.SIZES[0], moe.SIZES[1], PROGRAMS["many_experts"].of], ids=str)
def test_no_rounding_changes_a_choice(of: Mixture, dtype: torch.dtype) -> None:
    x, router = (a.to(dtype) for a in moe.tokens(replace(of, t=200), CPU))
    wide = F.linear(x.double(), router.double())
    top, chosen = wide.topk(of.k + 1, -1)
    assert float((top[:, of.k - 1] - top[:, of.k]).min()) > 0.8
    narrow = F.linear(x, router).topk(of.k, -1).indices
    assert torch.equal(narrow.sort(-1).values, chosen[:, :-1].sort(-1).values)
    assert 0.5 < float(x.float().std()) < 2.0


def test_more_experts_than_features() -> None:
    with pytest.raises(ValueError, match="9 experts cannot have orthonormal rows of 8"):
        moe.tokens(Mixture(t=1, h=8, i=8, e=9, k=2), CPU)


@pytest.mark.parametrize("name", list(moe.SPELLINGS))
def test_spellings_compute_what_fp64_does(name: str) -> None:
    case = moe.build(moe.SPELLINGS[name], moe.SMALL, torch.float32, CPU, "full")
    got = case.step(case.fn)
    assert len(got) == 1 + len(case.args)
    assert case.error(got, reference(case)) < 2e-6
    assert case.loops == name.endswith("_loop")


def test_spellings_agree_with_each_other() -> None:
    """On the same tokens and experts; Llama 4's routes in its own way."""
    results: list[Tensor] = []
    for name in moe.SPELLINGS.keys() - {"bmm_before"}:
        torch.manual_seed(0)
        case = moe.build(moe.SPELLINGS[name], moe.SMALL, torch.float32, CPU, "full")
        results.append(torch.cat([r.flatten() for r in case.step(case.fn)[:3]]))
    assert len(results) == 5
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize("name", ["many_experts", "decode_1", "decode_16_gathered"])
def test_every_contestant_computes_the_workload(name: str) -> None:
    """Gradients too, where there are any; the whole mixture is one rewrite."""
    work, gpu = workload(name), FakeGpu()
    result = runner.measure(work, work.modes[-1], torch.bfloat16, gpu, contestants(), BRIEF)
    failures = {n: m.failure for n, m in result.measures.items() if m.failure}
    assert not failures
    assert {LOOP, GROUPED, FUSER_ALWAYS} < result.measures.keys()
    errors = {n: m.error for n, m in result.measures.items() if m.error is not None}
    assert errors.keys() == result.measures.keys()
    assert max(errors.values()) < 0.02
    assert errors[FUSER_ALWAYS] < 3 * errors[EAGER]
    assert result.measures[FUSER_ALWAYS].rewrites["moe.mixture"] == 1


@pytest.mark.parametrize("name", ["many_experts", "mixtral"])
def test_fp64_of_some_experts_agrees_with_that_of_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = PROGRAMS[name]

    def made(numbers: int) -> Case:
        monkeypatch.setattr(moe_gpu, "FP64_NUMBERS", numbers)
        torch.manual_seed(0)
        return moe_gpu.build(program, torch.bfloat16, CPU, "full")

    whole, part = made(2**27), made(1)
    want, got = reference(whole), reference(part)
    assert want[3].shape == (program.of.e, 2 * program.of.i, program.of.h)
    assert got[3].shape == (1, 2 * program.of.i, program.of.h)
    assert relative_error(got[:3], want[:3]) < 1e-12
    assert relative_error(got[3:], tuple(g[:1] for g in want[3:])) < 1e-12
    right = part.step(part.fn)
    wrong = (*right[:3], right[3] + 1.0, right[4])
    assert part.error(right, got) < 0.02 < part.error(wrong, got)


def test_full_sizes_fit_into_a_gpu_in_fp64() -> None:
    parts = {name: p.part() for name, p in moe_gpu.programs(quick=False).items()}
    assert parts["mixtral"] == 1
    assert parts["few_chosen"] == 10
    assert parts["many_experts"] == 28


# -- ports


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_ports_compute_the_workload(name: str) -> None:
    program = PROGRAMS[name]
    torch.manual_seed(0)
    case = moe_gpu.build(program, torch.float32, CPU, program.modes[-1])
    want = reference(case)
    for fn in (case.fn, case.ports[LOOP].fn, case.ports[GROUPED].fn):
        assert case.error(case.step(fn), want) < 2e-6


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_nothing_but_the_loop_waits_for_the_host(name: str) -> None:
    """Fake tensors have no numbers to ask for."""
    case = moe_gpu.build(PROGRAMS[name], torch.bfloat16, CPU, "forward")
    with FakeTensorMode() as mode:
        fake = replace(case, args=tuple(mode.from_tensor(a) for a in case.args))
        for fn in (case.fn, case.ports[GROUPED].fn):
            assert fake.step(fn)[0].shape == case.args[0].shape
        with pytest.raises(DynamicOutputShapeException):
            fake.step(case.ports[LOOP].fn)


class OfLiger(torch.autograd.Function):
    """What Liger's function is called with, and gives back."""

    @staticmethod
    def forward(
        x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor, weights: Tensor
    ) -> Tensor:
        assert chosen.dtype == torch.int32
        assert weights.dtype == x.dtype
        gate, up = torch.einsum("td,tkhd->tkh", x, gate_up[chosen]).chunk(2, -1)
        rows = torch.einsum("tkh,tkdh->tkd", F.silu(gate) * up, down[chosen])
        return (rows * weights[..., None]).sum(1)

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: object) -> None: ...


def test_liger_runs_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    of = PROGRAMS["few_chosen"].of
    monkeypatch.setattr(ports_moe, "find_spec", lambda name: None)
    assert set(ports_moe.of(of)) == {LOOP, GROUPED}
    package = ModuleType(ports_moe.FUSED)
    package.LigerFusedMoEFunction = OfLiger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, ports_moe.FUSED, package)
    monkeypatch.setattr(ports_moe, "find_spec", lambda name: SimpleNamespace(name=name))
    case = moe_gpu.build(PROGRAMS["few_chosen"], torch.float32, CPU, "forward")
    assert set(case.ports) == set(ports_moe.NAMES)
    assert case.error(case.step(case.ports[LIGER].fn), reference(case)) < 2e-6


def test_loops_are_compiled_by_the_package_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the others, and where nothing breaks the graph, it is `torch.compile` as ever."""
    taken: list[object] = []

    def whole(fn: object, **kwargs: object) -> object:
        taken.append(kwargs)
        return fn

    monkeypatch.setattr(fuser, "compile", whole, raising=False)
    (ours,) = choose([FUSER], {"fuser.strict": True})
    (stand_in,) = choose([FUSER], {}, "eager")
    x = torch.ones(2)

    def double(x: Tensor) -> Tensor:
        return x + x

    assert ours.prepare(double, loops=True)(x).tolist() == [2.0, 2.0]
    assert taken == [{"options": {"fuser.strict": True}}]
    stand_in.prepare(double, loops=True)
    PROVIDERS[INDUCTOR].prepare(double, loops=True)
    ours.prepare(double)
    assert len(taken) == 1


# -- the command


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_the_command_measures_mixtures(
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if place == "cuda":
        monkeypatch.setattr(
            devices, "open_device", lambda place, *, graphs, lock: FakeGpu(graphs=graphs)
        )
    path, (name, names) = (
        tmp_path / "moe.csv",
        {
            "cpu": ("index_add_loop_e8_t16", [EAGER]),
            "cuda": ("decode_16_gathered", [EAGER, LOOP, LIGER]),
        }[place],
    )
    arguments = ["moe", "--device", place, "--quick", "--only", name, "--csv", str(path)]
    threads = torch.get_num_threads()
    try:
        command.main([*arguments, "--providers", *names])
    finally:
        torch.set_num_threads(threads)
    assert name in capsys.readouterr().out
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert {line["provider"] for line in lines} == set(names) - {LIGER}
    assert {(line["kernel_name"], line["x_name"]) for line in lines} == {(f"moe.{name}", "T")}
    assert {line["mode"] for line in lines} == (
        {"forward", "full"} if place == "cpu" else {"forward"}
    )
