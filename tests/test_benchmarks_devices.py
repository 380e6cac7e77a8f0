"""What a benchmark asks of a GPU, with a fake in its place; the command on one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import attention_gpu, devices, runner
from benchmarks.__main__ import family_of
from benchmarks.cases import Workload
from benchmarks.devices import MIB, Processor
from benchmarks.providers import (
    EAGER,
    FUSER,
    FUSER_ALWAYS,
    FUSER_TRITON,
    INDUCTOR,
    LOOP,
    PROVIDERS,
    SDPA,
    Provider,
    default_names,
)
from tests.fake_gpu import FakeGpu

CPU = torch.device("cpu")
BRIEF = runner.Effort(min_rounds=1, max_rounds=1, min_sample_ms=0.0)


def decode() -> Workload:
    (found,) = (w for w in attention_gpu.workloads(quick=True) if w.name == "decode")
    return found


def test_a_call_is_timed_between_events_after_a_flush() -> None:
    gpu = FakeGpu()
    taken = gpu.timed_ms(lambda: gpu.notes.append("call"), number=2)
    once = [*["flush"] * devices.HEADSTART, "record", "call", "record", "wait"]
    assert gpu.notes == once * 2
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
    runner.measure(decode(), "forward", torch.float32, gpu, chosen, BRIEF)
    assert gpu.notes.count("capture") == len(chosen) * graphs
    # warmed up, timed to see how long it takes, and one round
    assert gpu.notes.count("replay") == 3 * len(chosen) * graphs


def test_no_compiler_makes_graphs_of_its_own() -> None:
    tuned = [p for p in PROVIDERS.values() if p.options.get("max_autotune")]
    assert {p.name for p in tuned} == {"inductor-max", "flex-max", "fuser-max"}
    assert all(p.options["triton.cudagraphs"] is False for p in tuned)
    families = {name: family_of(name, "cuda").ports for name in ("attention", "moe")}
    everybody = {name for ports in families.values() for name in default_names("cuda", ports)}
    assert everybody == PROVIDERS.keys() - {FUSER_ALWAYS}
    assert not {SDPA, LOOP} <= set(default_names("cuda", families["moe"]))
    assert default_names("cpu", family_of("attention", "cpu").ports) == [
        EAGER, INDUCTOR, FUSER, SDPA,
    ]  # fmt: skip
    assert default_names("cpu", family_of("moe", "cpu").ports) == [EAGER, INDUCTOR, FUSER]


def test_memory_is_given_back_after_each_contestant() -> None:
    gpu = FakeGpu()

    def broken(gm: torch.fx.GraphModule, inputs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    chosen = [Provider(INDUCTOR, backend=broken), PROVIDERS[EAGER]]
    found = runner.measure(decode(), "forward", torch.float32, gpu, chosen, BRIEF)
    assert gpu.notes.count("release") == 4  # after the fp64 run and the rounds too
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
    monkeypatch.setattr(
        devices, "open_device", lambda place, *, graphs, lock: FakeGpu(graphs=graphs)
    )
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
