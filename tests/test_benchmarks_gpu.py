"""Attention at the sizes of GPUs, shrunk and on a CPU: limits, numbers, what is written."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import attention_gpu, limits, records, runner
from benchmarks.cases import Case, Workload, reference, relative_error
from benchmarks.providers import (
    EAGER,
    FLEX,
    FUSER,
    FUSER_TRITON,
    INDUCTOR,
    PROVIDERS,
    SDPA,
    Provider,
    choose,
)
from fuser.profiling.work import Rates, Work, measured_rates
from tests.every import some
from tests.fake_gpu import FakeGpu

CPU = torch.device("cpu")
H200 = limits.RATES["H200"]
PROGRAMS = attention_gpu.programs(quick=True)
BRIEF = runner.Effort(min_rounds=1, max_rounds=1, min_sample_ms=0.0)


def contestants() -> list[Provider]:
    """Everyone but FlexAttention, with compilers that take no time."""
    quick = {"fuser.inner": "aot_eager", "fuser.strict": True}
    ours = choose([FUSER, FUSER_TRITON], quick)
    inductor = replace(PROVIDERS[INDUCTOR], backend="aot_eager")
    return [PROVIDERS[EAGER], inductor, *ours, PROVIDERS[SDPA]]


def workload(name: str) -> Workload:
    (found,) = (w for w in attention_gpu.workloads(quick=True) if w.name == name)
    return found


# -- the list of workloads


@pytest.mark.parametrize(
    ("name", "limit_ms"),
    [
        ("plain_causal", 0.348),
        ("alibi_causal", 0.348),
        ("softcap_causal", 0.348),
        ("sliding_window", 0.337),
        ("t5_bias", 0.043),
        ("pair_bias", 0.016),
        ("commuted_mask", 0.348),
        ("decode", 0.125),
    ],
)
def test_limits_are_those_of_the_list(name: str, limit_ms: float) -> None:
    (work,) = (w for w in attention_gpu.workloads(quick=False) if w.name == name)
    assert work.work is not None
    assert work.work(torch.bfloat16, "forward").limit_ms(H200) == pytest.approx(limit_ms, rel=0.03)
    assert work.config["row"] == 1 + list(PROGRAMS).index(name)


@pytest.mark.parametrize("window", [0, 5, 12, 40])
def test_pairs_under_a_mask_are_counted(window: int) -> None:
    sizes = limits.Sizes(1, 1, 1, 12, 12, 8, window)
    back = torch.arange(12)[:, None] - torch.arange(12)[None, :]
    kept = (back >= 0) & (back < (window or 12))
    assert limits.causal(sizes) == int(kept.sum())


def test_backward_work() -> None:
    sizes = limits.Sizes(2, 4, 2, 8, 16, 32)
    forward, full = (
        limits.attention(sizes, 128, torch.bfloat16, mode) for mode in ("forward", "full")
    )
    assert forward == Work(4 * 2 * 4 * 128 * 32, 2 * (2 * 2 * 4 * 8 * 32 + 2 * 2 * 2 * 16 * 32))
    assert full == Work(3.5 * forward.flops, 3 * forward.bytes)
    assert Work(10.0, 1.0).limit_ms(Rates(bytes=1.0, flops=1.0)) == pytest.approx(1e4)


def test_rates_of_an_unknown_device_are_measured() -> None:
    found = measured_rates(lambda call: (call(), 2.0)[1], CPU, side=16, rounds=2)
    assert found.flops == pytest.approx(2 * 16**3 / 2e-3)
    assert found.bytes == pytest.approx(2 * 2 * 8 * 16 * 16 / 2e-3)


# -- numbers


@pytest.mark.parametrize("name", some(list(PROGRAMS), 3))
def test_every_contestant_computes_the_workload(name: str, tmp_path: Path) -> None:
    """Gradients too, where there are any; a generated kernel is one rewrite, as near to fp64."""
    work, gpu = workload(name), FakeGpu()
    mode = work.modes[-1]
    result = runner.measure(work, mode, torch.float32, gpu, contestants(), BRIEF)
    failures = {n: m.failure for n, m in result.measures.items() if m.failure}
    assert not failures
    assert (SDPA in result.measures) == PROGRAMS[name].variant.sdpa
    assert all(m.error is not None and m.error < 2e-6 for m in result.measures.values())
    ours = result.measures[FUSER_TRITON]
    assert ours.rewrites == {"attention.softmax": 1}
    assert ours.compile_s is not None
    assert ours.warm_s is not None
    path = tmp_path / "attention-cuda.csv"
    records.write_csv(path, records.rows(result, gpu))
    with path.open() as file:
        lines = list(csv.DictReader(file))
    metrics = {line["metric"] for line in lines if line["provider"] == FUSER_TRITON}
    asked = {"time_ms", "error", "share_of_limit", "compile_s", "warm_s", "peak_mb", "rewrites"}
    assert asked | {"speedup_over_best_peer", "speedup_over_inductor"} <= metrics
    assert {line["gpu_name"] for line in lines} == {gpu.name}
    assert {json.loads(line["extra_config"])["cuda_graphs"] for line in lines} == {False}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_ports_to_flex_attention_compute_the_workload(name: str) -> None:
    case = attention_gpu.build(PROGRAMS[name], torch.float32, CPU, "forward")
    got = case.step(case.ports[FLEX].fn)
    assert case.error(got, reference(case)) < 2e-6


@pytest.mark.parametrize("name", ["alibi_causal", "sliding_window", "decode"])
def test_fp64_of_some_heads_agrees_with_that_of_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = PROGRAMS[name]
    mode = "forward" if name == "decode" else "full"

    def made(scores: int) -> Case:
        monkeypatch.setattr(attention_gpu, "FP64_SCORES", scores)
        torch.manual_seed(0)
        return attention_gpu.build(program, torch.float32, CPU, mode)

    whole, part = made(2**27), made(1)
    assert whole.part is None
    assert part.part is not None
    want, got = part.part(reference(whole)), reference(part)
    assert got[0].numel() * program.sizes.h_kv * program.sizes.b == reference(whole)[0].numel()
    assert relative_error(got, want) < 1e-12
    wrong = tuple(x + 1.0 for x in part.step(part.fn))
    assert part.error(part.step(part.fn), got) < 2e-6 < part.error(wrong, got)


def test_a_bias_that_learns_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_gpu, "FP64_SCORES", 1)
    with pytest.raises(AssertionError, match="whole batch"):
        attention_gpu.build(PROGRAMS["t5_bias"], torch.float32, CPU, "full")


def test_full_sizes_fit_into_a_gpu_in_fp64() -> None:
    programs = attention_gpu.programs(quick=False)
    parts = {name: program.part() for name, program in programs.items()}
    assert parts["plain_causal"] == (1, 8)
    assert parts["sliding_window"] == (1, 1)
    whole = [name for name, p in programs.items() if parts[name] == (p.sizes.b, p.sizes.h_kv)]
    assert whole == ["t5_bias", "pair_bias", "decode"]
