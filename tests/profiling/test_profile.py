"""`fuser.profile`: measured, predicted, as text, as JSON and as a picture; and the command."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import fuser
from fuser import measure
from fuser.__main__ import main
from fuser.errors import MissingExtraError, UnknownArchitectureError, UnknownOptionError
from fuser.profiling import machine, picture, predict, profile, timing
from fuser.profiling.machine import KNOWN, Machine
from fuser.profiling.result import KEPT, Profile
from fuser.profiling.timing import medians

from .models import HERE, Block, Checkpointed, Masked, block, small

FILE = str(HERE)
ONE = Machine("a machine", 1e9, {"float32": 1e10}, 1e-6)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda device: ONE)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "compiled_ahead", lambda regions, arch: (None, []))


def adding_up(model: nn.Module, x: torch.Tensor) -> Profile:
    """A profile whose parts add up to the step, to 10 %.

    By the time of this process's threads, which others on the machine do not add to, and by
    medians. Others still take caches away, for a while: there are three attempts.
    """
    for attempt in range(3):
        torch._dynamo.reset()
        found = fuser.profile(model, x, options={"fuser.policy": "always"})
        steps = (found.ours, found.inductor)
        near = [step.parts_ms == pytest.approx(step.ms, rel=0.1) for step in steps]
        if all(near) or attempt == 2:
            break
    assert all(near), steps
    return found


@pytest.fixture
def by_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = functools.partial(medians, clock=time.process_time)
    monkeypatch.setattr(profile, "medians", timed)


@pytest.mark.usefixtures("known_machine", "by_the_threads")
def test_measured_parts_add_up_to_the_step() -> None:
    model, (x,) = block()
    with torch.no_grad():
        found = adding_up(model, x)
    assert [row.name for row in found.rows] == ["attention.softmax"] * 2 + [KEPT]
    assert not found.predicted
    region, other, left = found.rows
    assert (region.ours, region.inductor) == (other.ours, other.inductor)  # equal: measured once
    assert region.ours.ms is not None
    assert left.ours.ms is not None
    assert region.ours.ms > 0.1 * left.ours.ms  # neither is nothing, so that a sum says something
    limit_ms = 1e3 * 2 * 4 * (768 * 769 // 2) * (64 + 64) / 1e10
    assert region.ours.limit_ms == pytest.approx(limit_ms)
    assert region.ours.share == pytest.approx(limit_ms / region.ours.ms)
    text = str(found)
    assert "attention.softmax ×2" in text  # noqa: RUF001
    assert "as rewritten" in text
    assert "plain Inductor" in text
    assert "PREDICTED" not in text


@pytest.mark.usefixtures("known_machine")
def test_training_has_a_backward_in_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = torch.autograd.grad

    def counting(*args: object, **kwargs: object) -> object:
        calls.append("")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    model, (x,) = small()
    model.train()
    monkeypatch.setattr(torch.autograd, "grad", counting)
    found = fuser.profile(model, x, options={"fuser.policy": "always"})
    assert found.training
    runs = 6  # two steps, what is left of both, and a region twice, each at least five times
    assert len(calls) >= runs * 5
    assert all(row.ours.ms and row.inductor.ms for row in found.rows)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("known_machine", "by_the_threads")
def test_bodies_of_checkpoints_are_taken_apart() -> None:
    """And run as checkpoints: the parts add up to a step that computes the forward twice.

    Each layer has a mask of its own. One that all compute alike would be computed once in the whole
    step of plain Inductor, and its kernels that read it take four times as long on some CPUs.
    """
    torch.manual_seed(0)
    model = Checkpointed(Masked(256, 4, 768), Masked(256, 4, 768))
    x = torch.randn(1, 768, 256)
    found = adding_up(model, x)
    assert [row.name for row in found.rows] == ["attention.softmax", KEPT] * 2 + [KEPT]
    assert [row.where.file for row in found.rows] == [FILE] * 4 + [""]
    region = found.rows[0]
    pairs = 4 * 768 * 768
    assert region.ours.flops == 2 * pairs * (64 + 64) * (1 + 2.5)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("no_kernels")
def test_a_checkpoint_that_keeps_some_results() -> None:
    def policy(context: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        kept = op is torch.ops.aten.mm.default
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def step(x: torch.Tensor) -> torch.Tensor:
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(layer, x, use_reentrant=False, context_fn=contexts).sum()

    layer, x = Block(32, 2), torch.randn(1, 16, 32)
    found = fuser.profile(step, x, target="h200")
    assert [row.name for row in found.rows] == ["attention.softmax", KEPT, KEPT]
    assert found.rows[0].ours.flops == 2 * 2 * (16 * 17 // 2) * (16 + 16) * (1 + 2.5)


@pytest.mark.usefixtures("no_kernels")
def test_checkpoints_within_checkpoints() -> None:
    inner = Checkpointed(Block(32, 2))
    outer = Checkpointed(nn.Linear(32, 32), inner)
    found = fuser.profile(outer, torch.randn(1, 16, 32), target="h200")
    assert [row.name for row in found.rows] == ["attention.softmax", KEPT, KEPT, KEPT]
    (linear,) = fuser.profile(
        Checkpointed(nn.Linear(32, 32)), torch.randn(1, 16, 32), target="h200"
    ).rows
    assert found.rows[-1].ours.flops == linear.ours.flops


@pytest.mark.usefixtures("no_kernels")
def test_json_of_a_prediction() -> None:
    model, inputs = small()
    with torch.no_grad():
        found = fuser.profile(model, *inputs, target="sm_90")
    data = json.loads(json.dumps(found.to_json()))
    assert data["schema"] == 1
    assert data["predicted"] is True
    assert data["machine"]["name"] == "NVIDIA H200"
    step = data["step"]["ours"]
    assert [step[name] for name in ("ms", "parts_ms", "between_ms")] == [None] * 3
    assert step["limit_ms"] == pytest.approx(sum(r["ours"]["limit_ms"] for r in data["rows"]))
    names = [row["name"] for row in data["rows"]]
    assert names == ["attention.softmax", KEPT]
    fields = {"flops", "bytes", "intensity", "limit_ms", "ms", "share_of_peak", "bound"}
    assert set(data["rows"][0]["ours"]) == {*fields, "launches"}
    assert data["rows"][0]["ours"]["bound"] == "launch"
    assert "kernels takes" in str(found)
    assert data["rows"][0]["ours"]["ms"] is None
    assert data["rows"][0]["where"]["line"] > 0


@pytest.mark.usefixtures("no_kernels")
def test_a_prediction_is_marked_and_is_the_roofline() -> None:
    x, w = torch.randn(4096, 64), torch.randn(64, 64)
    with torch.no_grad():
        found = fuser.profile(lambda x, w: x @ w, x, w, target="h100")
    (row,) = found.rows
    moved = 4 * (2 * 4096 * 64 + 64 * 64)
    flops = 2 * 4096 * 64 * 64
    assert row.ours.limit_ms == pytest.approx(1e3 * max(moved / 3.35e12, flops / 67e12))
    assert "PREDICTED" in str(found)
    assert "Inductor ms" not in str(found)


def test_kernels_are_compiled_ahead_of_time() -> None:
    model, inputs = small()
    with torch.no_grad():
        found = fuser.profile(model, *inputs, target="h200")
    assert not found.problems
    assert found.kernels is not None
    (kernel,) = found.kernels.rows
    assert (kernel.kernel, kernel.arch, kernel.failed) == ("forward_kernel", "sm_90", False)
    assert "occupancy" in str(found)


@pytest.mark.usefixtures("no_kernels")
def test_architectures_mean_a_device() -> None:
    assert machine.known("sm_80") is KNOWN["a100"]
    assert machine.known("H200").arch == "sm_90"
    with pytest.raises(UnknownArchitectureError, match=r"'sm_91'.*Did you mean 'sm_90'"):
        fuser.profile(nn.ReLU(), torch.ones(2), target="sm_91")


def test_bad_input_is_named() -> None:
    with pytest.raises(fuser.FuserError, match="profile takes a module or function"):
        fuser.profile(nn.ReLU, torch.ones(2))
    with pytest.raises(UnknownOptionError, match=r"fuser\.polic"):
        fuser.profile(nn.ReLU(), torch.ones(2), options={"fuser.polic": "always"}, target="h200")


@pytest.mark.usefixtures("known_machine")
def test_nothing_captured_is_said() -> None:
    found = fuser.profile(lambda x: x, torch.ones(2))
    assert not found.rows
    assert found.ours.ms is None
    assert "No graph reached the backend" in str(found)


@torch._dynamo.allow_in_graph
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.usefixtures("no_kernels")
def test_a_graph_that_may_not_run_twice_is_left_out() -> None:
    model, (x,) = small()

    def noted(x: torch.Tensor) -> torch.Tensor:
        return model(unknown(x))

    with torch.no_grad():
        found = fuser.profile(noted, x, target="h200")
    assert not found.rows
    assert any("may do more than compute its value" in problem for problem in found.problems)


@pytest.mark.usefixtures("no_kernels")
def test_the_users_tensors_are_changed_once() -> None:
    model, (x,) = small()
    counter = torch.zeros(())

    def counting(x: torch.Tensor) -> torch.Tensor:
        counter.add_(1)
        return model(x)

    with torch.no_grad():
        found = fuser.profile(counting, x, target="h200")
    assert len(found.rows) == 2
    assert counter.item() == 1


def test_on_a_gpu_a_step_has_what_the_device_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the host's for steps; pieces are timed by the device."""
    finished: list[torch.device] = []
    monkeypatch.setattr(measure, "finish", finished.append)
    monkeypatch.setattr(measure, "medians", lambda runs, device: dict.fromkeys(runs, 1.5))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(timing, "undisturbed", lambda device: contextlib.nullcontext())
    ticks = itertools.count()
    gpu = torch.device("cuda")
    found = medians({"step": bool}, {"piece": bool}, gpu, clock=lambda: float(next(ticks)))
    assert found == {"step": 1000.0, "piece": 1.5}
    assert finished


@pytest.mark.usefixtures("no_kernels")
def test_a_pattern_of_the_users_is_counted_operator_by_operator() -> None:
    x = torch.randn(8, 8)
    handle = fuser.register_pattern(
        lambda x: torch.sin(x) * torch.cos(x), lambda x: torch.sin(2 * x) / 2, [x], id="user.twice"
    )
    with handle, torch.no_grad():
        found = fuser.profile(lambda x: (torch.sin(x) * torch.cos(x)) @ x, x, target="h200")
    region, left = found.rows
    assert region.name == "user.twice"
    assert (region.ours.flops, region.ours.bytes) == (3 * 8 * 8, 2 * 4 * 8 * 8)
    assert left.ours.flops == 2 * 8 * 8 * 8
    assert "user.twice" in str(found)


def test_the_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(measure, "_known", {})
    calls: list[torch.device] = []

    def calibrated(device: torch.device) -> dict[str, object]:
        calls.append(device)
        return {"bytes": 1e9, "flops": {"float32": 1e9}, "launch": 1e-6}

    monkeypatch.setattr(machine, "_calibrated", calibrated)
    first = machine.this_machine(torch.device("cpu"))
    monkeypatch.setattr(measure, "_known", {})  # another process reads it from disk
    assert machine.this_machine(torch.device("cpu")) == first
    assert len(calls) == 1


def test_what_is_measured_of_this_machine() -> None:
    found = machine._calibrated(torch.device("cpu"))
    assert 1e8 < found["bytes"] < 1e13
    assert 1e8 < found["flops"]["float32"] < 1e15
    assert 0 < found["launch"] < 1e-2


@pytest.mark.usefixtures("no_kernels")
def test_the_picture(tmp_path: Path) -> None:
    model, inputs = small()
    with torch.no_grad():
        found = fuser.profile(model, *inputs, target="h200")
    file = tmp_path / "roofline.png"
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(MissingExtraError, match=r"torch-fuser\[plot\]"):
            found.to_picture(file)
    else:
        found.to_picture(file)
        assert file.read_bytes().startswith(b"\x89PNG")
    assert picture._point(found.rows[0].ours) is not None


# -- the command


@pytest.mark.usefixtures("no_kernels")
def test_the_command_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", f"{FILE}:small", "--target", "h200", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["predicted"]
    assert len(data["rows"]) == 2
    assert main(["profile", f"{FILE}:small", "--target", "mi300x"]) == 0
    assert "AMD MI300X" in capsys.readouterr().out
    assert main(["profile", f"{FILE}:small", "--training", "--target", "h200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", f"{FILE}:small", "--target", "sm_91"]) == 2
    assert "unknown architecture 'sm_91'" in capsys.readouterr().err
    assert main(["profile", f"{FILE}:raises", "--target", "h200"]) == 2
    assert "raised ValueError on its inputs" in capsys.readouterr().err


def test_without_generated_kernels_none_are_compiled() -> None:
    model, inputs = small()
    with torch.no_grad():
        found = fuser.profile(
            model, *inputs, target="h200", options={"fuser.lowering": "reference"}
        )
    assert found.kernels is None
    assert found.rows[0].lowering == "reference"


@pytest.mark.usefixtures("known_machine")
def test_the_generators_stay_as_they_were() -> None:
    x, before = torch.randn(16, 16), torch.get_rng_state()
    fuser.profile(lambda x: torch.nn.functional.dropout(x, 0.5) * 2, x)
    assert torch.equal(torch.get_rng_state(), before)
