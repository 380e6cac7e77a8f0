"""The benchmark runner: its arithmetic, its CSV, and one quick run in eager."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as command
from benchmarks import (
    attention,
    cases,
    compile,
    crossover,
    figures,
    readme,
    records,
    runner,
    targets,
)
from benchmarks.cases import Case, Workload
from benchmarks.devices import Processor
from benchmarks.figures import Measure, Result
from benchmarks.limits import Work
from benchmarks.providers import EAGER, FUSER, INDUCTOR, PROVIDERS, SDPA, Provider, choose
from benchmarks.runner import Effort
from fuser.distinct import distinct
from tests.fake_gpu import FakeGpu

CPU = torch.device("cpu")
HERE = Processor()
LIGER = (
    "kernel_name provider mode metric x_name x_value y_value_50 y_value_20 y_value_80 "
    "extra_config gpu_name version"
).split()


def double(x: Tensor) -> Tensor:
    """Something to time."""
    return x + x


def make_result(name: str = "alibi", mode: str = "forward", **times: list[float]) -> Result:
    """A result with these times and errors of 1e-6 (eager) and 2e-6 (the others)."""
    config = {"B": 1, "H": 8, "D": 64}
    work = Workload("attention", name, lambda *_: Case(double, ()), config=config)
    measures = {
        who: Measure(ms, error=1e-6 if who == EAGER else 2e-6, peak_mb=4.0, largest_mb=2.0)
        for who, ms in times.items()
    }
    return Result(work, mode, torch.float32, measures)


@pytest.mark.parametrize("q", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_quantile_agrees_with_torch(q: float, n: int) -> None:
    samples = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    assert figures.quantile(samples.tolist(), q) == pytest.approx(samples.quantile(q).item())


def test_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        figures.quantile([], 0.5)


def test_ratio_is_paired_by_round() -> None:
    # Every round is twice as slow as the one before; the ratio within each is 3.
    result = make_result(inductor=[3.0, 6.0, 12.0], fuser=[1.0, 2.0, 4.0])
    assert result.ratio(INDUCTOR, FUSER) == pytest.approx((3.0, 3.0, 3.0))
    assert result.ratio(FUSER, INDUCTOR) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_ratio_without_times_is_none() -> None:
    result = make_result(inductor=[], fuser=[1.0])
    assert result.ratio(INDUCTOR, FUSER) is None
    assert result.ratio(SDPA, FUSER) is None


def test_ratios_from_different_rounds_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.paired_ratios([1.0, 2.0], [1.0])


def test_geomean() -> None:
    assert figures.geomean([1.0, 4.0, 16.0]) == pytest.approx(4.0)


def test_error_ratio() -> None:
    result = make_result(eager=[1.0], fuser=[1.0])
    assert figures.error_ratio(result, FUSER) == pytest.approx(2.0)
    result.measures[EAGER].error = 0.0
    assert figures.error_ratio(result, FUSER) == math.inf
    result.measures[FUSER].error = 0.0
    assert figures.error_ratio(result, FUSER) == 1.0


def test_relative_error_sees_sizes_and_nans() -> None:
    want = torch.tensor([0.0, 2.0, math.nan])
    got = torch.tensor([0.5, 2.0, math.nan])
    assert cases.relative_error((got,), (want,)) == pytest.approx(0.25)
    assert cases.relative_error((got.nan_to_num(),), (want,)) == math.inf


def test_reference_runs_fp32_steps_in_fp64() -> None:
    seen: list[torch.dtype] = []

    def upcasts(x: Tensor) -> Tensor:
        y = torch.softmax(x, -1, dtype=torch.float32)
        seen.extend([y.dtype, x.float().dtype, x.to(torch.float32).dtype])
        return y

    (out,) = cases.reference(Case(upcasts, (torch.randn(3),)))
    assert seen == [torch.float64] * 3
    assert out.dtype == torch.float64


def test_step_with_a_cotangent_returns_gradients() -> None:
    x = torch.ones(3, requires_grad=True)
    case = Case(double, (x,), cotangents=(torch.full((3,), 5.0),))
    out, grad = case.step(case.fn)
    assert out.tolist() == [2.0] * 3
    assert grad.tolist() == [10.0] * 3
    assert [t.dtype for t in cases.reference(case)] == [torch.float64] * 2


def test_interleave_rotates_and_keeps_rounds_together() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    effort = Effort(min_rounds=3, max_rounds=3, min_sample_ms=0.0)
    times = runner.interleave(calls, effort, HERE)
    assert {name: len(ms) for name, ms in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(order[6:]) == "abcbcacab"  # after two warm-up calls of each


def test_allocations_show_the_largest_tensor() -> None:
    def call() -> Tensor:
        return torch.empty(2**20, dtype=torch.float32).sum() + torch.empty(2**19).sum()

    peak, largest = HERE.allocations(call)
    assert largest == pytest.approx(4.0, abs=0.01)
    assert peak == pytest.approx(4.0, abs=0.1)


def test_distinct_has_its_own_code_and_the_same_closure() -> None:
    offset = 3

    def add(x: int, *, more: int = 1) -> int:
        return x + offset + more

    copy = distinct(add, "fuser")
    assert copy.__code__ is not add.__code__
    assert copy.__code__ != add.__code__
    assert copy(1) == add(1) == 5


def test_csv_has_ligers_columns(tmp_path: Path) -> None:
    theirs, ours = [3.0, 4.0, 5.0], [1.0, 2.0, 4.0]
    result = make_result(eager=[6.0] * 3, inductor=theirs, fuser=ours, sdpa=[2.0] * 3)
    result.measures[FUSER].rewrites = {"attention.softmax": 2}
    result.measures[EAGER].failure = "RuntimeError: no"
    result.measures[EAGER].times_ms = []
    path = tmp_path / "deep" / "a.csv"
    records.write_csv(path, records.rows(result, HERE))
    with path.open() as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    assert reader.fieldnames == LIGER
    found = {(row["provider"], row["metric"]): row for row in lines}
    time = found[FUSER, "time_ms"]
    assert time["kernel_name"] == "attention.alibi"
    assert (time["x_name"], time["x_value"], time["mode"]) == ("S", "1024", "forward")
    shown = [float(time[f"y_value_{q}"]) for q in (20, 50, 80)]
    assert shown == pytest.approx(list(figures.spread([1.0, 2.0, 4.0])))
    speedup = float(found[FUSER, "speedup_over_inductor"]["y_value_50"])
    assert speedup == pytest.approx(2.0)  # the median of 3, 2 and 1.25
    assert json.loads(time["extra_config"])["rewrites"] == {"attention.softmax": 2}
    assert json.loads(found[EAGER, "failure"]["extra_config"])["failure"] == "RuntimeError: no"
    assert (INDUCTOR, "speedup_over_inductor") not in found


def test_targets_say_what_is_met() -> None:
    good = make_result(eager=[9.0], inductor=[5.0], fuser=[2.0], sdpa=[1.8])
    bad = make_result("gqa_causal", eager=[9.0], inductor=[2.6], fuser=[2.0], sdpa=[1.0])
    checks = {c.text: c for c in targets.attention_checks([good, bad], half_in_hardware=True)}
    geomean = checks["float32 bias-only, fuser over inductor, geomean"]
    assert geomean.value == pytest.approx(math.sqrt(2.5 * 1.3))
    assert not geomean.met
    assert not checks["float32 bias-only, fuser over inductor, smallest"].met
    assert checks["any workload, smallest over inductor"].met
    assert not checks["float32 bias-only, fuser's time over sdpa, largest"].met
    assert checks["fuser's error over eager's, largest"].value == pytest.approx(2.0)
    structured = checks["structured mask, largest tensor over one S x S matrix"]
    assert structured.value == pytest.approx(0.5)  # 2 MiB of 4
    assert structured.met
    assert not any("bfloat16" in text for text in checks)


def test_bounds_for_half_where_the_cpu_does_not_multiply_it() -> None:
    half = make_result(eager=[9.0], inductor=[500.0], fuser=[20.0], sdpa=[18.0])
    half = dataclasses.replace(half, dtype=torch.bfloat16)
    slow = [c.text for c in targets.attention_checks([half], half_in_hardware=False)]
    fast = [c.text for c in targets.attention_checks([half], half_in_hardware=True)]
    assert "bfloat16 bias-only, fuser over inductor, geomean" in slow
    assert set(fast) < set(slow)
    assert "bfloat16 bias-only, fuser's time over sdpa, largest" in fast


def test_growth_is_the_exponent() -> None:
    graph = compile.Graph("pointwise", double, (), cold=False)

    def square(n: int) -> compile.Cost:
        return compile.Cost(graph, nodes=n, ours_ms=[(n / 1000) ** 2] * 3)

    assert compile.growth([square(n) for n in (1000, 3000, 20000)]) == pytest.approx(2.0)
    assert compile.growth([square(1000)]) is None
    assert compile.growth([square(100), square(1000)]) is None
    assert square(2000).ms_per_1000 == pytest.approx(2.0)


def test_cost_gives_the_backend_a_copy_each_time() -> None:
    sizes: list[int] = []

    def eats_a_node(gm: torch.fx.GraphModule, inputs: object, options: dict[str, object]) -> None:
        assert options == {"fuser.inner": "eager"}
        sizes.append(len(gm.graph.nodes))
        assert all("example_value" in n.meta for n in gm.graph.nodes if n.op != "output")
        gm.graph.erase_node(gm.graph.output_node())

    graph = compile.chain("near_misses", 20, CPU, cold=False)
    cost = compile.cost(graph, eats_a_node, repeats=2)
    assert sizes == [cost.nodes] * 3
    assert cost.nodes > 20
    assert len(cost.ours_ms) == 2
    assert cost.share is None


@pytest.mark.parametrize("name", list(attention.SPELLINGS))
def test_spellings_agree_with_plain_attention_where_they_should(name: str) -> None:
    shape = attention.Shape(s=16, d=8)
    case = attention.build(attention.SPELLINGS[name], shape, torch.float32, CPU, "full")
    out, *grads = case.step(case.fn)
    assert out.shape == case.cotangents[0].shape
    assert len(grads) == sum(a.requires_grad for a in case.args)
    assert cases.relative_error((out, *grads), cases.reference(case)) < 1e-5
    assert case.step(case.ports[SDPA].fn)[0].shape == out.shape
    if name == "plain":
        torch.testing.assert_close(out, case.ports[SDPA].fn(*case.args))


def test_measure_reports_a_crash_and_goes_on() -> None:
    def broken(gm: torch.fx.GraphModule, inputs: object) -> None:
        raise RuntimeError("no luck")

    work = Workload("test", "crash", lambda *_: Case(double, (torch.ones(2),)))
    chosen = [PROVIDERS[EAGER], Provider(FUSER, backend=broken)]
    result = runner.measure(work, "forward", torch.float32, HERE, chosen, runner.QUICK)
    assert "no luck" in (result.measures[FUSER].failure or "")
    assert len(result.measures[EAGER].times_ms) == runner.QUICK.min_rounds


def test_quick_run_in_eager(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "attention.csv"
    threads = torch.get_num_threads()
    arguments = ["attention", "--quick", "--only", "alibi", "--csv", str(path)]
    try:
        command.main([*arguments, "--providers", EAGER, SDPA])
    finally:
        torch.set_num_threads(threads)
    assert "alibi" in capsys.readouterr().out
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert {row["provider"] for row in lines} == {EAGER, SDPA}
    assert {row["mode"] for row in lines} == {"forward", "full"}
    assert {"time_ms", "error", "peak_mb", "largest_mb"} <= {row["metric"] for row in lines}
    machine = json.loads(path.with_suffix(".machine.json").read_text())
    assert machine["torch_threads"] == runner.THREADS


def test_a_stand_in_runs_under_fusers_name() -> None:
    stand_in, real = (choose([FUSER], {"fuser.strict": True}, s)[0] for s in ("eager", None))
    assert (stand_in.name, stand_in.backend, stand_in.options) == (FUSER, "eager", {})
    assert (real.backend, real.options) == (FUSER, {"fuser.strict": True})


def test_options_are_parsed() -> None:
    found = command.options_of(["fuser.policy=always", "fuser.strict=true"])
    assert found == {"fuser.policy": "always", "fuser.strict": True}


def _committed(folder: Path, name: str, result: Result, *, multiplies: bool) -> None:
    path = folder / f"{name}.csv"
    records.write_csv(path, records.rows(result, HERE))
    records.write_machine(path, ["python -m benchmarks"], 0.0)
    note = path.with_suffix(".machine.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"multiplies_bfloat16": multiplies}))


def test_the_readme_shows_what_the_files_say(tmp_path: Path) -> None:
    twice = make_result(inductor=[4.0], fuser=[2.0])
    twice.measures[FUSER].rewrites = {"attention.softmax": 1}
    half = make_result(mode="full", inductor=[9.0], fuser=[2.0])
    half = dataclasses.replace(half, dtype=torch.bfloat16)
    _committed(tmp_path, "attention-cpu", twice, multiplies=True)
    _committed(tmp_path, "attention-cpu-avx2", half, multiplies=False)
    header, _, line, *_ = readme.render(tmp_path).splitlines()
    assert header == ("| fuser over Inductor | float32 forward | emulated bfloat16 and backward |")
    assert line == "| attention.alibi | 2.00x | 4.50x ° |"


def test_the_readme_shows_the_longest_alone(tmp_path: Path) -> None:
    """Of mixtures, which are measured for several numbers of tokens."""
    shown = make_result(inductor=[4.0], fuser=[2.0])
    short = dataclasses.replace(shown.workload, name="short", x=("S", 16))
    lines = [
        *records.rows(shown, HERE),
        *records.rows(dataclasses.replace(shown, workload=short), HERE),
    ]
    _committed(tmp_path, "moe-cpu", shown, multiplies=True)
    records.write_csv(tmp_path / "moe-cpu.csv", lines)
    text = readme.render(tmp_path)
    assert "attention.alibi" in text
    assert "attention.short" not in text


def test_the_readme_joins_the_families_of_a_gpu(tmp_path: Path) -> None:
    gpu = FakeGpu()
    for family in ("attention", "moe"):
        result = make_result(inductor=[4.0], fuser=[2.0], flex=[1.0])
        work = dataclasses.replace(
            result.workload, family=family, name=f"of_{family}", work=lambda *_: Work(790e9, 0.0)
        )
        path = tmp_path / f"{family}-cuda.csv"
        records.write_csv(path, records.rows(dataclasses.replace(result, workload=work), gpu))
        note = {"gpu": gpu.name, "versions": "torch", "commit": "1234"}
        path.with_suffix(".machine.json").write_text(json.dumps(note))
        text = readme.render_gpu(tmp_path)
        assert f"| of_{family} | 2.00 | 50% | 2.00x | 0.50x, flex |" in text
    assert "of_attention" in text
    assert text.count("revision 1234") == 1


def test_the_readme_is_up_to_date() -> None:
    text = readme.README.read_text()
    shown = text.partition(readme.START)[2].partition(readme.END)[0]
    assert shown.strip() == readme.render(), "run python -m benchmarks.readme"
    shown = text.partition(readme.GPU_START)[2].partition(readme.GPU_END)[0]
    assert shown.strip() == readme.render_gpu(), "run python -m benchmarks.readme"


@pytest.mark.parametrize(
    ("auto", "fuser", "verdict"),
    [
        (True, 2.0, ""),
        (True, 0.9, "taken, but slower"),
        (False, 0.9, ""),
        (False, 1.3, "left, but faster"),
    ],
)
def test_a_crossover_tells_wrong_decisions(auto: bool, fuser: float, verdict: str) -> None:
    found = crossover.Decision(make_result(inductor=[fuser], fuser=[1.0]), auto)
    assert found.verdict == verdict
    assert len(crossover.checks([found])) == auto
    assert all(check.met == (verdict == "") for check in crossover.checks([found]))
    (line,) = [li for li in crossover.lines_of([found], HERE) if li.metric == "auto"]
    assert line.y_value_50 == float(auto)


def test_a_crossover_knows_what_auto_does() -> None:
    """Small sizes are left; forced, they are rewritten all the same."""
    small = {w.name: w for w in crossover.workloads(quick=True)}
    assert set(small) == set(crossover.NAMES)
    assert not crossover.decide(small["additive_mask"], "forward", torch.float32, CPU)
    long = next(w for w in crossover.workloads(quick=False) if w.name == "alibi" and w.x[1] == 512)
    assert crossover.decide(long, "forward", torch.float32, CPU)
