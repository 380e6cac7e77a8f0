"""Choices by measurement: what is timed, and what the report says. Times are made up."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from fuser import inductor_private, measure, rehearsal
from fuser.backend import listening
from fuser.contest import INNER
from fuser.errors import FuserWarning
from fuser.events import Record
from fuser.lowering.attention.chunked import ChunkedAttention
from fuser.lowering.triton import launch
from fuser.report.report import Report
from tests.compiled import Run as Result
from tests.compiled import assert_near, run, wide

CHUNKED, LIBRARY = "aten.chunked", "library kernel"
MODE = "max-autotune-no-cudagraphs"


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(measure, "_known", {})


@dataclass
class Clock:
    """Times by candidate, told instead of taken; every candidate was compiled and run before."""

    told: Mapping[str, float]
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, runs: Mapping[str, Any], device: torch.device) -> dict[str, float]:
        self.asked.append(list(runs))
        return {name: self.told.get(name, 9.0) for name in runs}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This CPU is a GPU without Triton, and Inductor runs graphs as they are."""

    def eager(mode: Any, options: Any) -> Callable[..., Any]:
        def compile_(gm: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            return gm.forward

        return compile_

    monkeypatch.setattr(measure, "is_measurable", lambda device: True)
    monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(inductor_private, "inductor", eager)
    monkeypatch.setattr(rehearsal, "inductor", eager)
    monkeypatch.setattr(launch, "interpreting", lambda: False)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def clock(monkeypatch: pytest.MonkeyPatch, **told: float) -> Clock:
    made = Clock({n.replace("_", " ").replace("chunked", CHUNKED): t for n, t in told.items()})
    monkeypatch.setattr(measure, "medians", made)
    return made


def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    return (q @ k.mT * 0.3 + bias).softmax(-1) @ v


def operands(grad: bool = False, rows: int = 40) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q, k, v = drawn(2, 4, rows, 4), drawn(2, 2, 40, 4), drawn(2, 2, 40, 4)
    return (*(x.requires_grad_(grad) for x in (q, k, v)), drawn(1, 4, rows, 40))


def compiled(
    inputs: Sequence[Tensor],
    fn: Callable[..., Any] = biased,
    *,
    mode: str | None = MODE,
    **options: Any,
) -> Result:
    """A run under the policy `auto`, where options are not given as `policy=...`."""
    torch._dynamo.reset()
    record = Record()
    target = torch.compile(fn, backend="fuser", mode=mode)
    grad = any(x.requires_grad for x in inputs)
    with pytest.MonkeyPatch.context() as patch, listening(record.extend):
        for name, value in options.items():  # torch.compile takes no options beside a mode
            patch.setenv(f"FUSER_{name.upper()}", str(value))
        found = run(target, inputs, grad=grad)
    found.record = record
    return found


@pytest.mark.usefixtures("gpu")
class TestChoice:
    @pytest.mark.parametrize("grad", [False, True])
    def test_the_fastest_wins(self, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = clock(monkeypatch, the_inner_backend=3.0, library_kernel=2.0, chunked=1.25)
        found = compiled(operands(grad))
        (rewrite,) = found.record.rewritten
        assert rewrite.lowering == CHUNKED
        assert rewrite.why.startswith(
            f"measured on a GPU: 1.25 ms; not {INNER}: 3 ms; not guarded.flash, bias: 2 ms; not "
        )
        assert ours.asked == [[INNER, LIBRARY, CHUNKED]]
        times = {c.name: (c.milliseconds, c.chosen, c.verdict) for c in rewrite.candidates}
        assert times[INNER] == (3.0, False, "not faster")
        assert times[CHUNKED] == (1.25, True, "the fastest")
        assert times["triton"][:2] == (None, False)
        text = " ".join(str(Report.of(found.record)).split())
        assert "because measured on a GPU: 1.25 ms; not the inner backend: 3 ms;" in text
        exact = run(biased, wide(operands(grad)), grad=grad)
        assert_near(found, run(biased, operands(grad), grad=grad), exact)

    @pytest.mark.parametrize("grad", [False, True])
    def test_a_generated_kernel_wins(self, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "interpreting", lambda: True)
        clock(monkeypatch, triton=1.0)
        found = compiled(operands(grad))
        (rewrite,) = found.record.rewritten
        assert rewrite.lowering == "triton, interpreted"
        exact = run(biased, wide(operands(grad)), grad=grad)
        assert_near(found, run(biased, operands(grad), grad=grad), exact)

    def test_leaving_it_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock(monkeypatch, the_inner_backend=1.0, library_kernel=1.0)
        found = compiled(operands())
        assert not found.record.rewritten
        (miss,) = found.record.near_misses
        assert miss.sound
        assert miss.reason.startswith(f"measured on a GPU, {INNER} takes 1 ms; guarded.flash, bias")
        assert "(fuser.policy=always forces it)" in miss.reason
        assert [c.name for c in miss.candidates if c.chosen] == [INNER]

    def test_forced_it_is_not_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = clock(monkeypatch, chunked=1.0)
        (rewrite,) = compiled(operands(), policy="always").record.rewritten
        assert rewrite.lowering == CHUNKED
        assert ours.asked == [[LIBRARY, CHUNKED]]

    def test_one_candidate_is_not_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = clock(monkeypatch)
        (rewrite,) = compiled(operands(), lowering="reference").record.rewritten
        assert rewrite.why == "takes every program; not measured: there is nothing to compare"
        assert not ours.asked

    @pytest.mark.parametrize("mode", [None, "default", "reduce-overhead"])
    def test_the_rule_decides_unasked(
        self, mode: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = clock(monkeypatch, chunked=1.0)
        (rewrite,) = compiled(operands(), mode=mode).record.rewritten
        assert rewrite.lowering == "guarded.flash, bias"
        assert rewrite.why.startswith("the program is a scale and a bias")
        assert not ours.asked

    def test_not_for_another_inner_backend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = clock(monkeypatch, chunked=1.0)
        compiled(operands(), inner="eager")
        assert not ours.asked

    def test_inductors_option_asks_too(self) -> None:
        assert inductor_private.autotunes(None, {"max_autotune": True})
        assert inductor_private.autotunes("max-autotune", {})
        assert not inductor_private.autotunes("reduce-overhead", {})
        with torch._inductor.config.patch(max_autotune=True):
            assert inductor_private.autotunes(None, {})
            assert not inductor_private.autotunes(None, {"max_autotune": False})

    def test_measured_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def twice(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            return biased(biased(q, k, v, bias), k, v, bias)

        ours = clock(monkeypatch, chunked=1.0)
        assert compiled(operands(), twice).rewrites() == 2
        measure._known.clear()
        assert compiled(operands(rows=33), twice).rewrites() == 2
        assert len(ours.asked) == 1
        compiled(operands(rows=65))
        compiled(operands(grad=True))
        assert len(ours.asked) == 3

    @pytest.mark.parametrize("part", ["device_name", "_triton_version"])
    def test_another_device_or_version(self, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = clock(monkeypatch)
        compiled(operands())
        monkeypatch.setattr(measure, part, lambda *_: "another")
        compiled(operands())
        assert len(ours.asked) == 2

    def test_a_difference_of_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One lowering makes both, and the region is measured as a whole."""

        def differential(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            k, v = (x.repeat_interleave(2, 1) for x in (k, v))
            one = (q @ k.mT * 0.3 + bias).softmax(-1)
            return (one - (q @ k.mT * 0.1 + bias).softmax(-1) * 0.5) @ v

        ours = clock(monkeypatch, chunked=1.0)
        found = compiled(operands(), differential)
        assert found.rewrites() == 2
        assert [r.lowering for r in found.record.rewritten] == [CHUNKED]
        assert len(ours.asked) == 1
        exact = run(differential, wide(operands()))
        assert_near(found, run(differential, operands()), exact)

    def test_symbolic_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Measured as they are in the example."""
        ours = clock(monkeypatch, chunked=1.0)
        inputs = operands(rows=36)
        torch._dynamo.maybe_mark_dynamic(inputs[0], 2)
        torch._dynamo.maybe_mark_dynamic(inputs[3], 2)
        found = compiled(inputs)
        assert [r.lowering for r in found.record.rewritten] == [CHUNKED]
        assert len(ours.asked) == 1
        assert_near(found, run(biased, inputs), run(biased, wide(inputs)))

    def test_random_state_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock(monkeypatch, chunked=1.0)
        torch.manual_seed(11)
        expected = torch.get_rng_state()
        torch._dynamo.reset()
        with torch.no_grad():
            torch.compile(biased, backend="fuser", mode=MODE)(*operands())
        assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.usefixtures("gpu")
class TestFailures:
    @pytest.fixture(autouse=True)
    def _chunked_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare = ChunkedAttention.prepare

        def broken(self: Any, call: Any, context: Any) -> Any:
            found = prepare(self, call, context)

            def emit(builder: Any) -> Any:
                raise ZeroDivisionError("no chunks today")

            return type(found)(emit, found.name, found.why, found.slower, found.facts, found.work)

        monkeypatch.setattr(ChunkedAttention, "prepare", broken)

    def test_a_candidate_that_raises_is_skipped(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        ours = clock(monkeypatch, library_kernel=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FuserWarning)
            (rewrite,) = compiled(operands()).record.rewritten
        assert rewrite.lowering == "guarded.flash, bias"
        assert f"not {CHUNKED}: it fails: ZeroDivisionError: no chunks today" in rewrite.why
        assert ours.asked == [[INNER, LIBRARY]]
        assert not list(tmp_path.rglob("measured/*")), "another process may have more luck"

    def test_in_strict_mode_it_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock(monkeypatch, library_kernel=1.0)
        with pytest.raises(Exception, match="no chunks today"):
            compiled(operands(), strict=1)

    def test_no_time_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One warning for all regions that are the same, and the rule's choice."""

        def broken(runs: Any, device: Any) -> Any:
            raise RuntimeError("the clock has stopped")

        def twice(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            return biased(biased(q, k, v, bias), k, v, bias)

        monkeypatch.setattr(measure, "medians", broken)
        with pytest.warns(FuserWarning, match="what is fastest for a region .* clock") as caught:
            first, second = compiled(operands(), twice).record.rewritten
        assert len([w for w in caught if w.category is FuserWarning]) == 1
        assert first.lowering == second.lowering == "guarded.flash, bias"
        assert first.why.endswith("not measured: that failed")
        assert second.why.endswith("not measured: that failed before")

    def test_an_operand_that_is_a_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is the number that it is in the example."""
        ours = clock(monkeypatch)

        def scaled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            k, v = (x.repeat_interleave(2, 1) for x in (k, v))
            return (q @ k.mT * q.shape[2] + bias).softmax(-1) @ v

        inputs = operands()
        torch._dynamo.maybe_mark_dynamic(inputs[0], 2)
        torch._dynamo.maybe_mark_dynamic(inputs[3], 2)
        (miss,) = compiled(inputs, scaled).record.near_misses
        assert len(ours.asked) == 1
        assert miss.reason.startswith("measured on a GPU")


def timed(runs: Mapping[str, Any], device: torch.device) -> dict[str, float]:
    """Whoever computes in blocks is the fastest; all of them run twice."""
    for run_once in runs.values():
        run_once()
    return {name: 1.0 if name == CHUNKED else 2.0 for name in runs}


@pytest.mark.parametrize("autocast", [False, True])
def test_through_inductor_in_training(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are compiled and differentiated in the middle of a compile, which goes on."""
    monkeypatch.setattr(measure, "is_measurable", lambda device: True)
    monkeypatch.setattr(measure, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(measure, "medians", timed)
    monkeypatch.setattr(inductor_private, "autotunes", lambda mode, options: True)
    monkeypatch.setattr(rehearsal, "MODE", None)
    monkeypatch.setattr(launch, "interpreting", lambda: False)
    inputs = operands(grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = compiled(inputs, mode=None, strict=1)
        eager = run(biased, inputs, grad=True)
    (rewrite,) = found.record.rewritten
    assert rewrite.lowering == CHUNKED
    assert rewrite.why.startswith("measured on a GPU: 1 ms; not the inner backend: 2 ms")
    assert_near(found, eager, run(biased, wide(operands(grad=True)), grad=True))
