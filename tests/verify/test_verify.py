"""`fuser.verify` and the option of the same name: what they say, and what they leave alone."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fuser
from fuser.errors import (
    FuserError,
    FuserWarning,
    ReplacementMismatchError,
    UnknownBackendError,
    VerificationError,
)
from fuser.rewrite import Rewriter
from fuser.verification import memory, regions
from tests.compiled import compiled

from .broken import BROKEN, HEADS, Broken, causal, rms

OPTIONS = {"fuser.inner": "eager", "fuser.policy": "always", "fuser.lowering": "reference"}
VERIFIED = {**OPTIONS, "fuser.verify": True}
BY_FAMILY = {broken.family: broken for broken in reversed(BROKEN)}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * 0.5, -1) @ v


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.dropout(torch.softmax(q @ k.mT * 0.5, -1), 0.5, True) @ v


def break_(family: str, monkeypatch: pytest.MonkeyPatch) -> Broken:
    broken = BY_FAMILY[family]
    broken.apply(monkeypatch)
    return broken


class TestFunction:
    def test_an_inner_backend_that_is_not_there(self) -> None:
        with pytest.raises(UnknownBackendError, match="nobackend"):
            fuser.verify(attend, *HEADS(), options={"fuser.inner": "nobackend"})

    def test_a_table(self) -> None:
        found = fuser.verify(attend, *HEADS(), options=OPTIONS).expect(attention=1)
        assert found.ok
        (verdict,) = found.verified
        names = [c.name for c in verdict.compared]
        assert names == ["output 0", *(f"gradient of l_{name}_" for name in "qkv")]
        assert all(0 < c.original <= c.allowed and c.error <= c.allowed for c in verdict.compared)
        text = str(found)
        assert "VERIFIED  attention.softmax" in text
        assert "test_verify.py:" in text
        assert "ours   original    allowed" in text
        assert "1 verified" in text

    def test_inference_has_no_gradients(self) -> None:
        with torch.no_grad():
            (verdict,) = fuser.verify(attend, *HEADS(), options=OPTIONS).verified
        assert [c.name for c in verdict.compared] == ["output 0"]

    def test_a_wrong_region(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = break_("attention", monkeypatch)
        with pytest.warns(FuserWarning, match="is wrong"):
            found = fuser.verify(broken.model, *broken.inputs(), options=OPTIONS)
        assert not found.ok
        (verdict,) = found.wrong
        wrong = verdict.compared[0]
        assert wrong.problem
        assert len(wrong.worst) == 4
        assert wrong.error > 1e3 * wrong.original
        assert f"<- at {list(wrong.worst)}" in str(found)
        with pytest.raises(VerificationError, match=r"attention\.softmax at .*broken\.py"):
            found.expect()
        data = json.loads(json.dumps(found.to_json()))
        assert data["ok"] is False
        assert data["verdicts"][0]["outcome"] == "wrong"
        assert data["verdicts"][0]["compared"][0]["worst"] == list(wrong.worst)

    def test_what_is_expected(self) -> None:
        found = fuser.verify(attend, *HEADS(), options=OPTIONS)
        with pytest.raises(VerificationError, match="expected attention=2, but 1 was verified"):
            found.expect(attention=2)
        with pytest.raises(FuserError, match="no pattern or family is called 'attentoin'"):
            found.expect(attentoin=1)
        with pytest.raises(FuserError, match="a number of regions"):
            found.expect(attention=-1)

    def test_a_region_that_was_not_rewritten_after_all(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is said of it but that it failed."""

        def fails(*args: object) -> None:
            raise ReplacementMismatchError("mine", 0, "shape", (1,), (2,))

        monkeypatch.setattr(Rewriter, "replace", fails)
        with pytest.warns(FuserWarning, match="failed"):
            found = fuser.verify(attend, *HEADS(), options={**OPTIONS, "fuser.strict": False})
        assert not found.report.verdicts
        assert len(found.report.failures) == 1
        with pytest.raises(VerificationError, match="expected attention=1, but 0 were verified"):
            found.expect(attention=1)

    def test_what_the_inner_backend_refuses_anyway(self) -> None:
        """It is nobody's mistake, and nothing is remembered of it."""
        weight = torch.ones(16, requires_grad=True)
        with torch.inference_mode():
            x = torch.randn(4, 16)
        options = {**OPTIONS, "fuser.inner": "aot_eager"}
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            fuser.verify(rms, x, weight, options=options)
        assert memory.is_empty()
        assert fuser.verify(rms, torch.randn(4, 16), weight, options=options).ok

    def test_nothing_finite(self) -> None:
        nan = [torch.full_like(x, torch.nan) for x in HEADS()]
        found = fuser.verify(attend, *nan, options=OPTIONS)
        (verdict,) = found.unverified
        assert verdict.reason == "none of the numbers that it gives is finite"

    def test_nothing_was_captured(self) -> None:
        assert "No graph reached the backend" in str(fuser.verify(lambda x: x, torch.ones(2)))

    def test_it_compiles_in_isolation(self) -> None:
        model = torch.compile(attend, backend="fuser", options=OPTIONS)
        inputs = HEADS()
        model(*inputs)
        fuser.verify(model, *inputs, options=OPTIONS)
        with torch._dynamo.config.patch(error_on_recompile=True):
            model(*inputs)

    def test_no_function(self) -> None:
        with pytest.raises(FuserError, match="verify takes a module or function"):
            fuser.verify(nn.Linear, torch.ones(2))


class TestUnverified:
    """A region that cannot be compared is rewritten all the same, and the reason is told."""

    def reason(self, caplog: pytest.LogCaptureFixture, *args: Any, **options: Any) -> str:
        with caplog.at_level(logging.WARNING, logger="fuser"):
            ours = compiled(*args, grad=True, **{**VERIFIED, **options})
        assert ours.record.rewritten
        (verdict,) = ours.record.verdicts
        assert verdict.outcome == "unverified"
        assert verdict.reason in caplog.text
        assert "1 of 1 regions were not verified" in caplog.text
        return verdict.reason

    def test_random_numbers(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.reason(caplog, dropped, HEADS()) == "it draws random numbers"

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, NotImplementedError])
    def test_it_fails(
        self,
        error: type[Exception],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No memory is left, or no kernel for float64 exists."""

        def fails(*_: Any) -> Any:
            raise error("there is none")

        monkeypatch.setattr(regions, "judge", fails)
        assert "there is none" in self.reason(caplog, attend, HEADS())

    def test_the_graph_fails(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any) -> Any:
            raise torch.OutOfMemoryError("no memory")

        monkeypatch.setattr(regions, "observe", fails)
        assert "no memory" in self.reason(caplog, attend, HEADS())

    def test_it_is_not_ok(self) -> None:
        found = fuser.verify(dropped, *HEADS(), options=OPTIONS)
        assert not found.ok
        assert len(found.unverified) == 1
        assert found.expect(attention=0) is found
        assert "NOT VERIFIED  attention.softmax" in str(found)


class TestRoads:
    """Wherever a region stands, it is compared."""

    def verdicts(self, *args: Any, grad: bool = True, **options: Any) -> list[str]:
        ours = compiled(*args, grad=grad, **{**VERIFIED, **options})
        assert len(ours.record.verdicts) == len(ours.record.rewritten)
        return [v.outcome for v in ours.record.verdicts]

    def test_a_checkpoint(self) -> None:
        def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return checkpoint(attend, q * 2, k, v, use_reentrant=False)  # type: ignore[return-value]

        assert self.verdicts(model, HEADS(), **{"fuser.inner": "aot_eager"}) == ["verified"]

    def test_a_wrong_one_in_a_checkpoint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = break_("attention", monkeypatch)

        def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return checkpoint(broken.model, q * 2, k, v, use_reentrant=False)  # type: ignore[return-value]

        with pytest.warns(FuserWarning, match="is wrong"):
            ours = compiled(model, HEADS(), grad=True, **{**VERIFIED, "fuser.inner": "aot_eager"})
        torch.testing.assert_close(ours.outputs[0], model(*HEADS()).detach())

    def test_graph_breaks(self) -> None:
        def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            y = attend(q, k, v)
            torch._dynamo.graph_break()
            return attend(y, k, v)

        inputs = [x.detach() for x in HEADS()]
        assert self.verdicts(model, inputs, grad=False) == ["verified", "verified"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        inputs = [x.detach().to(dtype).requires_grad_() for x in HEADS()]
        assert self.verdicts(attend, inputs) == ["verified"]

    def test_autocast(self) -> None:
        def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch.autocast("cpu"):
                return attend(q, k, v)

        assert self.verdicts(model, HEADS()) == ["verified"]
        with torch.autocast("cpu"):
            assert self.verdicts(attend, HEADS()) == ["verified"]

    def test_symbolic_sizes(self) -> None:
        inputs = [x.detach() for x in HEADS()]
        for x in inputs:
            torch._dynamo.mark_dynamic(x, 2)

        def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(q @ k.mT / q.shape[-2], -1) @ v

        assert self.verdicts(model, inputs, grad=False) == ["verified"]

    def test_through_inductor(self) -> None:
        with torch.no_grad():
            found = fuser.verify(causal, *HEADS(), options={"fuser.policy": "always"})
        assert [v.outcome for v in found.report.verdicts] == ["verified"]

    def test_a_pattern_of_the_users(self) -> None:
        """Of what it puts there nothing is known but what it reads."""

        def find(x: Tensor) -> Tensor:
            return torch.exp(x) + torch.exp(-x)

        def right(x: Tensor) -> Tensor:
            return 2 * torch.cosh(x)

        def wrong(x: Tensor) -> Tensor:
            return 2.001 * torch.cosh(x)

        x = torch.randn(4, 6, requires_grad=True)
        with fuser.register_pattern(find, right, (x.detach(),), id="mine.cosh"):
            assert self.verdicts(find, (x,)) == ["verified"]
        with fuser.register_pattern(find, wrong, (x.detach(),), id="mine.cosh"):
            with pytest.warns(FuserWarning, match=r"mine\.cosh put there \(replacement\) is wrong"):
                compiled(find, (x,), grad=True, **VERIFIED)
        with fuser.register_pattern(find, right, (x.detach(),), id="mine.cosh"):
            assert self.verdicts(find, (x,)) == ["verified"]


def test_it_is_forgotten_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        broken = break_("norm", patch)
        with pytest.warns(FuserWarning, match="is wrong"):
            fuser.verify(rms, *broken.inputs(), options=OPTIONS)
    assert not fuser.verify(rms, *broken.inputs(), options=OPTIONS).ok
    memory.forget()
    assert fuser.verify(rms, *broken.inputs(), options=OPTIONS).ok


def test_a_warning_that_is_an_error_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = break_("norm", monkeypatch)
    with pytest.raises(Exception, match="is wrong"):
        fuser.verify(rms, *broken.inputs(), options=OPTIONS)


def test_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSER_VERIFY", "1")
    assert fuser.explain(attend, *HEADS(), options=OPTIONS).verdicts
    monkeypatch.setenv("FUSER_VERIFY", "0")
    assert not fuser.explain(attend, *HEADS(), options=OPTIONS).verdicts
