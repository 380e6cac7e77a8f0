"""A kernel that is broken on purpose is caught, and the model is right nevertheless."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fuser
from fuser.backend import listening
from fuser.errors import FuserWarning
from fuser.events import Record
from fuser.lowering.attention.generated.tile import TileWriter
from fuser.lowering.triton.pointwise import RULES
from tests.compiled import assert_near, compiled, run, wide

from .broken import BROKEN, Broken, made


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.id)
def test_it_is_taken_back(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, verified = broken.inputs(), {**broken.options, "fuser.verify": True}
    sound = compiled(broken.model, inputs, grad=True, **verified)
    assert {v.outcome for v in sound.record.verdicts} == {"verified"}
    assert len(sound.record.verdicts) == len(sound.record.rewritten) > 0
    broken.apply(monkeypatch)
    with pytest.warns(FuserWarning, match="back to the inner backend"):
        ours = compiled(broken.model, inputs, grad=True, **verified)
    verdicts = ours.record.verdicts
    assert {v.outcome for v in verdicts} == {"wrong"}
    assert not ours.record.rewritten
    exact = run(wide(broken.model), wide(inputs), grad=True)
    assert_near(ours, run(broken.model, inputs, grad=True), exact)
    problems = [c.name for c in verdicts[0].compared if c.problem]
    assert problems
    assert not broken.gradient or all("gradient" in name for name in problems)
    assert Path(verdicts[0].script).is_file()


@pytest.mark.parametrize("broken", BROKEN[:1], ids=lambda b: b.id)
def test_for_the_rest_of_the_process(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other compiles leave equal regions alone, at any size, whether they verify or not."""
    broken.apply(monkeypatch)
    inputs = broken.inputs()
    with pytest.warns(FuserWarning, match="is wrong"):
        compiled(broken.model, inputs, **broken.options, **{"fuser.verify": True})
    for verify in (False, True):
        larger = [torch.cat([x, x], 1).detach() for x in inputs]
        again = compiled(broken.model, larger, **broken.options, **{"fuser.verify": verify})
        assert not again.record.rewritten
        (verdict,) = again.record.verdicts
        assert verdict.outcome == "wrong"
        assert "was wrong before in this process: output 0 at [" in verdict.reason
    report = fuser.explain(broken.model, *inputs, options=broken.options)
    assert report.count("attention") == 0
    assert "TAKEN BACK  attention.softmax" in str(report)


def test_without_verification_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows that it is verification that notices."""
    broken = BROKEN[0]
    broken.apply(monkeypatch)
    record = Record()
    with listening(record.extend), torch.no_grad():
        found = torch.compile(broken.model, backend="fuser", options=broken.options)(
            *broken.inputs()
        )
    assert len(record.rewritten) == 1
    assert not torch.allclose(found, broken.model(*broken.inputs()), atol=1e-3)


def test_equal_regions_of_a_graph_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BROKEN[0]
    broken.apply(monkeypatch)
    attend = broken.model

    def two(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(attend(q, k, v), k, v)

    with pytest.warns(FuserWarning, match="is wrong") as warned:
        ours = compiled(two, broken.inputs(), **broken.options, **{"fuser.verify": True})
    assert len(warned) == 1
    first, second = ours.record.verdicts
    assert (first.outcome, second.outcome) == ("wrong", "wrong")
    assert first.script == second.script


def test_a_generated_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text computes another function; with a number of its own, no other test gets it."""

    def gated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.silu(x * 1.371) * y

    inputs = [torch.randn(3, 8, requires_grad=True) for _ in range(2)]
    options = {"fuser.lowering": "triton", "fuser.patterns": "activation", "fuser.verify": True}
    monkeypatch.setitem(RULES, "sigmoid", RULES["tanh"])
    with pytest.warns(FuserWarning, match=r"\(triton, interpreted\) is wrong"):
        ours = compiled(gated, inputs, grad=True, **options)
    assert_near(ours, run(gated, inputs, grad=True), run(gated, wide(inputs), grad=True))


def test_a_generated_kernel_without_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(q.shape[-2])
        scores = torch.tanh(q @ k.mT * 0.377)
        return torch.softmax(scores.masked_fill(rows[:, None] < rows, -torch.inf), -1) @ v

    inputs = made(*[(1, 2, 20, 8)] * 3)()
    options = {"fuser.lowering": "triton", "fuser.patterns": "attention", "fuser.verify": True}
    usual = TileWriter.mask
    monkeypatch.setattr(TileWriter, "mask", lambda self: f"({usual(self)}) | True")
    with pytest.warns(FuserWarning, match=r"interpreted.* is wrong"):
        ours = compiled(causal, inputs, grad=True, **options)
    assert_near(ours, run(causal, inputs, grad=True), run(causal, wide(inputs), grad=True))
