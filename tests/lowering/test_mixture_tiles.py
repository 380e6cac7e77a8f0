"""Kernels of mixtures cut in other ways than the rule's: descriptors, and programs that go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from fuser import measure
from fuser.lowering.moe.generated import problem, tune
from fuser.lowering.moe.generated.catalogue import Entry, builtin
from fuser.lowering.moe.generated.config import INTERPRETED, Config, choose
from fuser.lowering.triton.aot import Resources
from fuser.lowering.triton.launch import TARGETS
from fuser.lowering.triton.pool import compile_all
from tests.every import crossed
from tests.lowering.compiling import noted
from tests.lowering.mixtures import mixture, swiglu
from tests.lowering.test_generated_moe import check

WIDE = {"features": 40, "hidden": 64, "width": 48}
CASES: dict[str, dict[str, Any]] = {
    "stacked": WIDE,
    "weights first": {**WIDE, "first": True, "biases": True},
    "features last": {**WIDE, "transposed": True, "biases": True},
    "columns that a tile does not end with": {"features": 40, "hidden": 40, "width": 24},
    "many tiles": {**WIDE, "tokens": 90, "experts": 3},
    "one token": {**WIDE, "tokens": 1},
}
CUTS = {
    "descriptors": replace(INTERPRETED, tma=True),
    "from tile to tile": replace(INTERPRETED, persistent=1),
    "both": replace(INTERPRETED, tma=True, persistent=2),
}


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of what is launched."""
    return noted(monkeypatch, problem)


def loading(texts: list[str]) -> list[str]:
    """Those that multiply rows with matrices."""
    return [t for t in texts if "tile_m = " in t or "tile_m0 = " in t or "tile_b = " in t]


@pytest.mark.parametrize(
    ("case", "cut", "dtype"), crossed(CASES, CUTS, (torch.float32, torch.bfloat16)), ids=str
)
def test_numbers(
    case: str, cut: str, dtype: torch.dtype, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "choose", lambda *a: CUTS[cut])
    check(*mixture(swiglu, dtype=dtype, **CASES[case]))
    kernels = [t for t in loading(texts) if "def matrix_kernel" not in t]
    assert len(kernels) >= 4
    assert all(("tl.make_tensor_descriptor" in t) == CUTS[cut].tma for t in kernels)
    assert all(("tl.num_programs" in t) == bool(CUTS[cut].persistent) for t in kernels)


@pytest.mark.parametrize(
    "more",
    [{"features": 39, "hidden": 41, "width": 37}, {**WIDE, "separate": True}],
    ids=["rows at odd places", "matrices apart"],
)
def test_what_the_hardware_does_not_take(
    more: dict[str, Any], texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "choose", lambda *a: CUTS["descriptors"])
    check(*mixture(swiglu, dtype=torch.float32, **more))
    assert loading(texts)
    assert not any("make_tensor_descriptor" in t for t in texts)


def entries() -> list[Entry]:
    kept = ("SwiGLU, 128 experts, bfloat16", "SwiGLU, weights first, float16")
    return [e for e in builtin() if e.label in kept and e.stage in tune.STAGES[:-1]]


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_it_compiles(arch: str) -> None:
    layouts = [(e, replace(e.layout, interpreted=False)) for e in entries()]
    cuts = [
        (e.cut(replace(choose(e.stage, of, arch, e.rows), tma=True, persistent=1)), arch)
        for e, of in layouts
    ]
    found = compile_all(cuts)
    assert all(isinstance(f, Resources) and f.launchable for f in found), found
    assert all("tl.make_tensor_descriptor(" in kernel.source for kernel, _ in cuts)


# -- by measurement


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[Config]:
    """This CPU is a GPU to the tuner, which runs all that it tries, and prefers what comes last."""
    found: list[Config] = []
    launch = problem.Problem.launch

    def trying(self: Any, stage: str, *rest: Any, **numbers: int) -> None:
        if stage in tune.STAGES:
            found.append(self.config(stage))
        launch(self, stage, *rest, **numbers)

    def compare(makers: Mapping[str, Callable[[], Any]], device: Any) -> measure.Times:
        for make in makers.values():
            make()()
        return {name: -float(name) for name in makers}

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(measure, "is_measurable", lambda device: True)
    monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(measure, "_known", {})
    monkeypatch.setattr(measure, "compare", compare)
    monkeypatch.setattr(problem, "choose", lambda *a: INTERPRETED)
    monkeypatch.setattr(problem.Problem, "launch", trying)
    return found


@pytest.mark.parametrize("stage", tune.STAGES)
def test_every_stage_is_cut_as_it_is_tried(stage: str, tried: list[Config]) -> None:
    spec, x = mixture(swiglu, dtype=torch.float32, **WIDE)
    of = problem.problem(x.x, x.indices, x.weights, tune.Experts(spec, x.matrices, x.biases), "")
    of = replace(of, target=replace(TARGETS["sm_90"], processors=4))
    with measure.autotuning(True, strict=True):
        found = of.config(stage)
    wanted = tune.neighbours(of.layout, stage, of.target, of.rows / spec.experts)
    assert found == wanted[-1] != wanted[0]
    ran = [c for c in tried if c in wanted]
    assert list(dict.fromkeys(ran[-len(wanted) :])) == wanted
    with measure.autotuning(False):
        assert of.config(stage) == INTERPRETED


def test_the_rule_has_neighbours() -> None:
    (entry,) = (e for e in entries() if e.stage == "up" and "128" in e.label)
    layout = replace(entry.layout, interpreted=False)
    for arch, target in TARGETS.items():
        found = tune.neighbours(layout, "up", target, 512.0)
        assert found[0] == choose("up", layout, arch, 512.0)
        assert any(c.tma for c in found) == (arch in ("sm_90", "sm_100"))
        assert any(c.persistent for c in found)
        assert len({(c.block_m, c.block_n) for c in found}) > 2
