"""Attention at the sizes of GPUs, shrunk and on a CPU: all but the timing is tried here."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import attention_gpu, devices, limits, records, runner, table, targets
from benchmarks.cases import Case, Workload, reference, relative_error
from benchmarks.devices import MIB, Gpu, Processor
from benchmarks.figures import Measure, Result
from benchmarks.limits import Rates, Work
from benchmarks.providers import (
    EAGER,
    FLEX,
    FUSER,
    FUSER_MAX,
    FUSER_TRITON,
    INDUCTOR,
    PROVIDERS,
    SDPA,
    Provider,
    choose,
    default_names,
)

CPU = torch.device("cpu")
H200 = limits.RATES["H200"]
PROGRAMS = attention_gpu.programs(quick=True)
BRIEF = runner.Effort(min_rounds=1, max_rounds=1, min_sample_ms=0.0)


class FakeGpu(Gpu):
    """A GPU on the CPU: it notes what it is asked for, and its clock ticks once an event."""

    def __init__(self, *, graphs: bool = False) -> None:
        super().__init__(CPU, graphs=graphs)
        self.notes: list[str] = []
        self.held, self.highest, self.clock = 100 * MIB, 0, 0.0

    @property
    def name(self) -> str:
        return "NVIDIA H200 (of paper)"

    def release(self) -> None:
        self.notes.append("release")

    def _flush(self) -> None:
        self.notes.append("flush")

    def _event(self) -> devices.Event:
        return FakeEvent(self)

    def _restart_peak(self) -> int:
        self.highest = self.held
        return self.held

    def _peak(self) -> int:
        return self.highest

    def _captured(self, call: devices.Call) -> devices.Call:
        self.notes.append("capture")
        call()
        return lambda: self.notes.append("replay")


class FakeEvent:
    """An event of the fake GPU."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.gpu.clock += 1.0
        self.at = self.gpu.clock
        self.gpu.notes.append("record")

    def synchronize(self) -> None:
        self.gpu.notes.append("wait")

    def elapsed_time(self, end_event: FakeEvent) -> float:
        return end_event.at - self.at


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
    found = limits.measured(lambda call: (call(), 2.0)[1], CPU, side=16, rounds=2)
    assert found.flops == pytest.approx(2 * 16**3 / 2e-3)
    assert found.bytes == pytest.approx(2 * 2 * 8 * 16 * 16 / 2e-3)


# -- numbers


@pytest.mark.parametrize("name", list(PROGRAMS))
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


# -- the device


def test_a_call_is_timed_between_events_after_a_flush() -> None:
    gpu = FakeGpu()
    taken = gpu.timed_ms(lambda: gpu.notes.append("call"), number=2)
    assert gpu.notes == ["flush", "record", "call", "record", "wait"] * 2
    assert taken == pytest.approx(1.0)


def test_memory_is_counted_from_what_was_held_before() -> None:
    gpu = FakeGpu()

    def call() -> None:
        gpu.highest = gpu.held + 7 * MIB

    assert gpu.allocations(call) == (7.0, None)


@pytest.mark.parametrize("graphs", [False, True])
def test_graphs_are_for_everybody_or_nobody(graphs: bool) -> None:
    gpu = FakeGpu(graphs=graphs)
    chosen = [PROVIDERS[EAGER], PROVIDERS[SDPA]]
    runner.measure(workload("decode"), "forward", torch.float32, gpu, chosen, BRIEF)
    assert gpu.notes.count("capture") == len(chosen) * graphs
    # warmed up, timed to see how long it takes, and one round
    assert gpu.notes.count("replay") == 3 * len(chosen) * graphs


def test_no_compiler_makes_graphs_of_its_own() -> None:
    tuned = [p for p in PROVIDERS.values() if p.options.get("max_autotune")]
    assert {p.name for p in tuned} == {"inductor-max", "flex-max", "fuser-max"}
    assert all(p.options["triton.cudagraphs"] is False for p in tuned)
    assert default_names("cuda") == list(PROVIDERS)
    assert default_names("cpu") == [EAGER, INDUCTOR, FUSER, SDPA]


def test_memory_is_given_back_after_each_contestant() -> None:
    gpu = FakeGpu()

    def broken(gm: torch.fx.GraphModule, inputs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    chosen = [Provider(INDUCTOR, backend=broken), PROVIDERS[EAGER]]
    found = runner.measure(workload("decode"), "forward", torch.float32, gpu, chosen, BRIEF)
    assert gpu.notes.count("release") == 2
    assert "out of memory" in (found.measures[INDUCTOR].failure or "")
    assert found.measures[EAGER].times_ms


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["attention", "--device", "cuda"])
    assert stopped.value.code == 2
    assert "there is no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "graphs", "message"),
    [("meta", False, "know 'cpu' and 'cuda', not 'meta'"), ("cpu", True, "need a CUDA device")],
)
def test_devices_that_are_none(place: str, graphs: bool, message: str) -> None:
    with pytest.raises(devices.NoSuchDevice, match=message):
        devices.open_device(torch.device(place), graphs=graphs)
    assert isinstance(devices.open_device(CPU), Processor)


def test_the_command_runs_on_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, as `python -m benchmarks attention --device cuda --quick` would."""
    monkeypatch.setattr(devices, "open_device", lambda place, *, graphs: FakeGpu(graphs=graphs))
    path = tmp_path / "attention.csv"
    arguments = ["attention", "--device", "cuda", "--quick", "--only", "alibi_causal", "--csv"]
    options = ["--option", "fuser.inner=aot_eager", "--modes", "forward"]
    threads = torch.get_num_threads()
    try:
        names = [EAGER, FUSER_TRITON, SDPA]
        command.main([*arguments, str(path), *options, "--providers", *names])
    finally:
        torch.set_num_threads(threads)
    shown = capsys.readouterr().out
    assert "over best peer" in shown
    assert "bfloat16" in shown
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert {line["provider"] for line in lines} == set(names)
    assert {line["gpu_name"] for line in lines} == {"NVIDIA H200 (of paper)"}
    (best,) = [li for li in lines if li["metric"] == "speedup_over_best_peer"]
    assert float(best["y_value_50"]) == pytest.approx(1.0)  # on this clock all take 1 ms
    (rewrites,) = [li for li in lines if li["metric"] == "rewrites"]
    assert float(rewrites["y_value_50"]) == 1.0


# -- tables and targets


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
