"""The table of many contestants, and the targets at the sizes of GPUs."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from benchmarks import attention_gpu, limits, table, targets
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
