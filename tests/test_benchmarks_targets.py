"""The table of many contestants, and the targets at the sizes of GPUs."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from benchmarks import attention_gpu, limits, moe_gpu, table, targets
from benchmarks.cases import Case, Workload
from benchmarks.figures import Measure, Result
from benchmarks.limits import Work
from benchmarks.providers import (
    EAGER,
    FLEX,
    FUSER,
    FUSER_MAX,
    FUSER_TRITON,
    SDPA,
)

H200 = limits.RATES["H200"]
PROGRAMS = attention_gpu.programs(quick=True)


def made(name: str, mode: str = "forward", peak_mb: float = 1.0, **ms: float) -> Result:
    work = Workload(
        "attention", name, lambda *_: Case(lambda: None, ()), x=("S", 1024),
        work=lambda dtype, mode: Work(790e9, 0.0),
    )  # fmt: skip
    measures = {
        who.replace("_", "-"): Measure([t], error=1e-3, peak_mb=peak_mb, warm_s=0.5)
        for who, t in ms.items()
    }
    return Result(work, mode, torch.bfloat16, measures)


def test_the_table_has_a_line_for_each_provider(capsys: pytest.CaptureFixture[str]) -> None:
    result = made("alibi_causal", eager=9.0, inductor=8.0, flex=5.0, fuser=4.0, fuser_triton=2.0)
    result.measures[FUSER].rewrites = {"attention.softmax": 1}
    result.measures[SDPA] = Measure(failure="RuntimeError: no kernel")
    table.show_each([result], "attention", Console(width=200), H200)
    shown = capsys.readouterr().out
    lines = {cells[4].strip(): [c.strip() for c in cells] for cells in _cells(shown)}
    assert lines[FUSER][5:9] == ["4.000 (4.000-4.000)", "25%", "2.00x", "1.25x"]
    assert lines[FUSER_TRITON][6:9] == ["50%", "4.00x", "2.50x"]
    assert lines[FLEX][6:9] == ["20%", "1.60x", "-"]
    assert lines[SDPA][5] == "failed"
    assert "sdpa failed: RuntimeError: no kernel" in shown


def _cells(shown: str) -> list[list[str]]:
    return [line.split("│") for line in shown.splitlines() if line.count("│") > 5]


def test_a_yardstick_is_no_peer() -> None:
    result = made("plain", eager=9.0, sdpa=1.0, fuser=2.0, fuser_max=1.0)
    assert result.best_peer() == SDPA
    result.measures[SDPA].yardstick = True
    assert result.best_peer() == EAGER
    assert FUSER_MAX in result.measures


def check_of(results: list[Result], start: str) -> targets.Check:
    (found,) = (c for c in targets.gpu_attention_checks(results) if c.text.startswith(start))
    return found


@pytest.mark.parametrize(
    ("name", "mode", "bound"),
    [
        ("alibi_causal", "forward", 3.0),
        ("alibi_causal", "full", 2.0),
        ("sliding_window", "forward", 8.0),
        ("decode", "forward", 1.5),
        ("plain_causal", "forward", 0.97),
    ],
)
def test_ratios_over_inductor(name: str, mode: str, bound: float) -> None:
    start = f"{name} {mode}, fuser over inductor"
    for factor, met in ((1.01, True), (0.99, False)):
        result = made(name, mode, inductor=bound * factor, fuser=1.0)
        found = check_of([result], start)
        assert found.met is met
        assert found.bound == bound


@pytest.mark.parametrize(("ours", "met"), [(1.02, True), (1.05, False)])
def test_never_below_the_best_peer(ours: float, met: bool) -> None:
    result = made("pair_bias", eager=4.0, inductor=9.0, flex=1.0, fuser=ours, fuser_triton=0.1)
    found = check_of([result], "pair_bias forward, fuser over the best peer (flex)")
    assert found.met is met


@pytest.mark.parametrize(("peak_mb", "met"), [(1.0, True), (2.5, False)])
def test_a_window_takes_no_square_matrix(peak_mb: float, met: bool) -> None:
    result = made("sliding_window", peak_mb=peak_mb, inductor=9.0, fuser=1.0)
    assert check_of([result], "sliding_window, peak memory").met is met


def test_every_workload_has_a_target() -> None:
    assert list(targets.ON_GPU) == list(PROGRAMS)


# -- mixtures


def mixture(kind: str, experts: int, k: int, rewrites: int = 0, **ms: float) -> Result:
    config = {"E": experts, "K": k, "kind": kind}
    work = Workload("moe", kind, lambda *_: Case(lambda: None, ()), x=("T", 16), config=config)
    measures = {who: Measure([t], error=1e-3) for who, t in ms.items()}
    measures[FUSER].rewrites = {"moe.mixture": rewrites} if rewrites else {}
    return Result(work, "forward", torch.float32, measures)


@pytest.mark.parametrize(
    ("result", "start", "bound", "met"),
    [
        (mixture("dense", 8, 2, inductor=2.5, fuser=1.0), "dense forward", 2.4, True),
        (mixture("dense", 64, 8, inductor=4.7, fuser=1.0), "dense forward", 4.8, False),
        (mixture("loop", 8, 2, 1, inductor=1.1, fuser=1.0), "loops that became", 1.2, False),
        (mixture("loop", 8, 2, 1, inductor=1.3, fuser=1.0), "loops that became", 1.2, True),
        (mixture("loop", 8, 2, inductor=0.96, fuser=1.0), "any mixture", 0.97, False),
        (mixture("grouped", 8, 2, inductor=0.98, fuser=1.0), "any mixture", 0.97, True),
    ],
)
def test_mixtures_on_a_cpu(result: Result, start: str, bound: float, met: bool) -> None:
    (found,) = (c for c in targets.moe_checks([result]) if c.text.startswith(start))
    assert found.bound == pytest.approx(bound)
    assert found.met is met


def test_a_loop_that_nobody_rewrote_need_not_gain() -> None:
    found = targets.moe_checks([mixture("loop", 8, 2, inductor=1.0, fuser=1.0)])
    assert [c.text for c in found] == ["any mixture, smallest over inductor"]


@pytest.mark.parametrize(
    ("name", "mode", "ms", "start", "met"),
    [
        ("many_experts", "forward", {"loop": 21.0, "fuser": 2.0}, "fuser over the loop", True),
        ("many_experts", "full", {"loop": 21.0, "fuser": 2.0}, "fuser over the loop", False),
        ("many_experts", "forward", {"fuser": 2.2}, "fuser's ms", False),
        ("few_chosen", "forward", {"fuser": 9.9}, "fuser's ms", True),
        ("mixtral", "forward", {"fuser": 1.8}, "fuser's share of the limit", True),
        ("decode_16", "forward", {"fuser": 1.2}, "fuser's share of the limit", False),
        ("decode_128", "forward", {"liger": 1.0, "fuser": 1.02}, "fuser over the best", True),
    ],
)
def test_mixtures_on_a_gpu(
    name: str, mode: str, ms: dict[str, float], start: str, met: bool
) -> None:
    """The work of these takes a millisecond at the least."""
    checks = targets.gpu_moe_checks([made(name, mode, **ms)])
    (found,) = (c for c in checks if c.text.startswith(f"{name} {mode}, {start}"))
    assert found.met is met


def test_targets_of_mixtures_are_of_workloads() -> None:
    modes = {name: p.modes for name, p in moe_gpu.programs(quick=True).items()}
    for name, mode in (*targets.MOE_OVER_LOOP, *targets.MOE_MS, *targets.MOE_SHARE):
        assert mode in modes[name]
