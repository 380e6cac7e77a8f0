"""Configs by measurement: whose turn it is to choose, what is tried, what is kept.

Times are made up, and kernels run in the interpreter: no GPU is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fuser import measure
from fuser.errors import FuserWarning
from fuser.graph.program import IDENTITY_TEXT, Program
from fuser.lowering.attention.generated import config, problem, tune
from fuser.lowering.attention.generated.catalogue import CAUSAL, SOFTCAP
from fuser.lowering.attention.generated.config import SHAPES, Config
from fuser.lowering.attention.generated.layout import Captured, Layout, Operand
from fuser.lowering.triton.aot import Failure
from fuser.lowering.triton.launch import INTERPRETER, TARGETS
from fuser.specs import AttentionSpec

CPU = torch.device("cpu")
HOPPER = TARGETS["sm_90"]
SIZES = {"B": 1, "H": 2, "HKV": 1, "GROUP": 2, "SQ": 33, "SK": 40}
RULE = config.choose


def layout_of(*captured: Captured, score: Program = SOFTCAP, probs: str = IDENTITY_TEXT) -> Layout:
    wide = torch.float32
    spec = AttentionSpec(1, len(captured), score, Program(probs), wide, wide, wide, mask=CAUSAL)
    q = (Operand(wide, 16),)
    return Layout(spec, q, q, Operand(wide, 16), captured, grouped=True, interpreted=True)


LAYOUT = layout_of()


@dataclass
class Clock:
    """Times that are told, not taken; every candidate runs once, and what it raises counts."""

    told: Callable[[int], float]
    asked: int = 0
    tried: int = 0

    def __call__(self, makers: Mapping[str, Callable[[], Any]], device: Any) -> measure.Times:
        self.asked += 1
        self.tried += len(makers)
        found: measure.Times = {}
        for i, (name, make) in enumerate(makers.items()):
            try:
                make()()
                found[name] = self.told(i)
            except Exception as error:
                found[name] = error
        return found


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """This CPU is a GPU to the tuner, and launches ask it as they will."""

    def wired(stage: str, layout: Layout, target: Any, *, rows: int, **_: Any) -> Config:
        found = tune.lookup(layout, stage, target, SIZES, math.inf, CPU)
        return found or RULE(stage, layout, target, rows=rows)

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(measure, "is_measurable", lambda device: True)
    monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(measure, "_known", {})
    monkeypatch.setattr(problem, "choose", wired)
    with measure.autotuning(True):
        yield


def clock(monkeypatch: pytest.MonkeyPatch, told: Callable[[int], float]) -> Clock:
    made = Clock(told)
    monkeypatch.setattr(measure, "compare", made)
    return made


def lookup(stage: str = "forward", layout: Layout = LAYOUT, **sizes: int) -> Config | None:
    return tune.lookup(layout, stage, HOPPER, {**SIZES, **sizes}, math.inf, CPU)


@pytest.mark.parametrize("stage", ["forward", "rows", "keys"])
def test_the_fastest_is_taken_and_kept(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = clock(monkeypatch, lambda i: 1.0 if i == 3 else 2.0)
    tried = tune.neighbours(LAYOUT, stage, HOPPER, rows=33)
    assert lookup(stage) == tried[3] != tried[0]
    measure._known.clear()
    assert lookup(stage) == tried[3]
    assert ours.asked == 1


def test_stages_with_captured_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = Captured(torch.float32, "hqk", False)
    column = Captured(torch.float32, "hq", False)
    body = '{"inputs":["s0","c0","c1"],"body":[["x","operator:add",[{"$":"s0"},{"$":"c0"}],{}],'
    body += '["y","operator:add",[{"$":"x"},{"$":"c1"}],{}]],"out":"y"}'
    squared = '{"inputs":["p"],"body":[["x","operator:mul",[{"$":"p"},{"$":"p"}],{}]],"out":"x"}'
    layout = layout_of(bias, column, score=Program(body), probs=squared)
    ours = clock(monkeypatch, float)
    for stage in ("tiles", "delta"):
        assert lookup(stage, layout) == RULE(stage, layout, HOPPER, rows=33)
    assert ours.asked == 2


def test_every_stage_is_cut_as_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[tuple[str, Config]] = []
    original = problem.Problem.launch

    def noted(self: Any, stage: str, arguments: Any, grid: Any, config: Config, *rest: Any,
              **numbers: int) -> None:  # fmt: skip
        cut.append((stage, config))
        original(self, stage, arguments, grid, config, *rest, **numbers)

    monkeypatch.setattr(problem.Problem, "launch", noted)
    clock(monkeypatch, float)
    lookup("keys")
    tried = tune.neighbours(LAYOUT, "keys", HOPPER, rows=33)
    assert [c for stage, c in cut if stage == "keys"] == tried
    assert {stage for stage, _ in cut} == {"forward", "keys"}


def test_the_rule_has_neighbours() -> None:
    layout = replace(LAYOUT, interpreted=False)
    found = tune.neighbours(layout, "forward", HOPPER, rows=4096)
    assert found[0] == RULE("forward", layout, HOPPER, rows=4096)
    assert len(found) == len(set(found)) > 5
    assert len({(c.block_m, c.block_n) for c in found}) > 1
    assert len({c.num_warps for c in found}) > 1
    assert len({c.num_stages for c in found}) > 1


def test_what_does_not_fit_is_not_tried() -> None:
    wide = replace(LAYOUT, q=(Operand(torch.float32, 256),), k=(Operand(torch.float32, 256),))
    found = tune.neighbours(wide, "forward", TARGETS["gfx942"], rows=4096)
    assert all(config._fits("forward", wide, c, TARGETS["gfx942"]) for c in found[1:])
    assert SHAPES["forward"][0] not in found


@pytest.mark.parametrize("arch", sorted(TARGETS))
def test_what_only_some_devices_have(arch: str) -> None:
    found = tune.neighbours(replace(LAYOUT, interpreted=False), "rows", TARGETS[arch], rows=4096)
    assert any(c.tma for c in found) == (arch in ("sm_90", "sm_100"))
    assert any(c.warp_specialize for c in found) == (arch == "sm_100")
    assert all(c.tma for c in found if c.warp_specialize)


def test_what_the_compiler_cannot_specialise_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def compile_all(tasks: Any) -> list[Any]:
        asked.extend(arch for _, arch in tasks)
        assert all("warp_specialize=True" in kernel.source for kernel, _ in tasks)
        return [Failure("rows_kernel", "sm_100", "it crashed"), *[None] * (len(tasks) - 1)]

    monkeypatch.setattr(tune, "compile_all", compile_all)
    ours = clock(monkeypatch, float)
    target = TARGETS["sm_100"]
    all_of_them = tune.neighbours(LAYOUT, "rows", target, rows=33)
    tune.lookup(LAYOUT, "rows", target, SIZES, math.inf, CPU)
    assert asked == ["sm_100"] * sum(c.warp_specialize for c in all_of_them) != []
    assert ours.tried == len(all_of_them) - 1


def test_another_version_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = clock(monkeypatch, float)
    lookup()
    (text,) = measure._known
    measure._known[text] = {"config": {"block_m": 64, "magic": 1}, "milliseconds": 1.0}
    assert lookup() == tune.neighbours(LAYOUT, "forward", HOPPER, rows=33)[0]
    assert ours.asked == 2


def test_sizes_share_a_measurement_by_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = clock(monkeypatch, float)
    lookup(SQ=33)
    lookup(SQ=64)
    assert ours.asked == 1
    lookup(SQ=65)
    lookup(layout=replace(LAYOUT, precision="tf32"))
    assert ours.asked == 3


def test_nothing_is_measured_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = clock(monkeypatch, float)
    with measure.autotuning(False):
        assert lookup() is None
    assert tune.lookup(LAYOUT, "forward", INTERPRETER, SIZES, math.inf, CPU) is None
    assert lookup("combine") is None
    table = layout_of(Captured(torch.float32, "", False, 2), score=SOFTCAP)
    assert lookup(layout=table) is None
    monkeypatch.setattr(measure, "is_measurable", lambda device: False)
    assert lookup() is None
    assert ours.asked == 0


def test_configs_that_fail_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, lambda i: 1 / 0 if i == 0 else float(i))
    with measure.autotuning(True, strict=True):
        assert lookup() == tune.neighbours(LAYOUT, "forward", HOPPER, rows=33)[1]


def test_a_failure_costs_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = clock(monkeypatch, lambda i: 1 / 0)
    with pytest.warns(FuserWarning, match="how to cut the forward kernel .* ZeroDivisionError"):
        assert lookup() is None
    assert lookup() is None
    assert ours.asked == 1
    measure._known.clear()
    with measure.autotuning(True, strict=True), pytest.raises(ZeroDivisionError):
        lookup()


def test_in_the_middle_of_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels are launched from in a compile: all is fake, and random state is kept."""
    clock(monkeypatch, float)
    found: list[Config | None] = []

    def traced(x: torch.Tensor) -> torch.Tensor:
        found.append(lookup("rows"))
        return x + 1

    torch.manual_seed(3)
    expected = torch.get_rng_state()
    with FakeTensorMode():
        x = torch.empty(3)
    graph = make_fx(traced, tracing_mode="fake")(torch.ones(3))
    assert torch.equal(torch.get_rng_state(), expected)
    assert found == [tune.neighbours(LAYOUT, "rows", HOPPER, rows=33)[0]]
    assert [n.op for n in graph.graph.nodes] == ["placeholder", "call_function", "output"]
    assert x.shape == (3,)
