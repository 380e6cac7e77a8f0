"""`fuser.explain`: what it finds, in which words, and that nobody notices that it ran."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.fx import Node
from torch.utils.checkpoint import checkpoint

from fuser import registry
from fuser.errors import CoverageError, FuserError, FuserWarning, UnknownOptionError
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.report.explain import explain
from fuser.report.report import Report

from .models import HERE, WIDTH, Encoder, SelfAttention, Stateful, line_of, tokens


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


@torch.no_grad()
def test_rewrites_name_the_users_lines_and_modules() -> None:
    report = explain(Encoder(SelfAttention(), SelfAttention()), tokens())
    assert report.expect(attention=2) is report
    assert report.count("attention.*") == report.count() == 2
    assert report.count("moe") == 0
    first, second = report.rewritten
    assert Path(first.where.file) == HERE
    assert first.where.line == line_of("anchor")
    assert first.where.code.startswith("out = (p @ v)")
    assert (first.where.module, second.where.module) == ("layers.0", "layers.1")
    assert first.facts["heads"] == "4 query, 4 key-value"
    assert first.facts["scale"] == "0.25"
    assert first.lowering
    assert first.why


@torch.no_grad()
def test_each_removed_node_has_its_source_line() -> None:
    (rewrite,) = explain(Encoder(SelfAttention()), tokens()).rewritten
    lines = dict(
        zip([fx.partition(":")[0] for fx in rewrite.removed], rewrite.sources, strict=True)
    )
    assert lines["p"].line == line_of("softmax")
    assert {where.line for where in lines.values()} == {
        line_of(mark) for mark in ("scores", "softmax", "anchor")
    }
    assert any("scaled_dot_product_attention" in fx for fx in rewrite.added)


@torch.no_grad()
def test_near_miss_has_reason_and_line_and_expect_shows_it() -> None:
    report = explain(Encoder(SelfAttention(), SelfAttention(leaky=True)), tokens())
    (miss,) = report.declined
    assert report.left == ()
    assert miss.reason == "the probabilities are used elsewhere: returned"
    assert (miss.where.node, miss.where.line) == ("p_1", line_of("softmax"))
    assert miss.where.module == "layers.1"
    with pytest.raises(CoverageError) as error:
        report.expect(attention=2, moe=0)
    text = str(error.value)
    assert text.startswith("expected attention=2, but 1 was rewritten\n")
    assert miss.reason in text
    assert f"models.py:{line_of('softmax')}" in text


@torch.no_grad()
def test_expect_names_every_family_that_differs() -> None:
    report = explain(Encoder(SelfAttention()), tokens())
    with pytest.raises(
        AssertionError, match=r"expected attention=3, .*; expected moe=1, but 0 were"
    ):
        report.expect(attention=3, moe=1)


@torch.no_grad()
def test_graphs_are_numbered_and_breaks_are_named() -> None:
    report = explain(Encoder(SelfAttention(), SelfAttention(broken=True)), tokens())
    assert report.graphs == 3
    place = f"{HERE}:{line_of('break')}: "
    assert [line for line in report.breaks if line.startswith(place) and "print" in line]
    assert any("all of `forward` runs in eager" in line for line in report.breaks)
    (miss,) = report.declined
    assert miss.graph == 2
    assert "GRAPH BREAKS" in str(report)


def test_a_branch_on_data_is_named_in_plain_words() -> None:
    def branches(x: Tensor) -> Tensor:
        x = x * 2
        return x + 1 if x.sum() > 0 else x

    (line,) = explain(branches, torch.ones(3)).breaks
    assert line.endswith("a branch depends on the value of a tensor")
    assert line.startswith(__file__)


def test_options() -> None:
    nothing = explain(
        Encoder(SelfAttention()), tokens(), options={"fuser.patterns": "-attention.*"}
    )
    assert (nothing.count(), nothing.near_misses) == (0, ())
    assert "Nothing that a pattern looks for was found." in str(nothing)
    with pytest.raises(UnknownOptionError, match=r"fuser\.policy"):
        explain(Encoder(SelfAttention()), tokens(), options={"fuser.polcy": "always"})


@pytest.mark.parametrize("enabled", [True, False])
def test_runs_once_under_the_callers_grad_mode(enabled: bool) -> None:
    outs: list[Tensor] = []

    def step(x: Tensor) -> Tensor:
        outs.append(x * weight)
        return outs[-1]

    weight = torch.ones(3, requires_grad=True)
    with torch.set_grad_enabled(enabled):
        explain(step, torch.ones(3))
    assert [out.requires_grad for out in outs] == [enabled]


def test_state_is_as_before() -> None:
    model = Stateful()
    explain(model, torch.randn(4, WIDTH))  # imports what draws random numbers when first used
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn, python = torch.get_rng_state(), random.getstate()
    counted = {name: dict(counter) for name, counter in counters.items()}
    explain(model, torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), drawn)
    assert random.getstate() == python
    assert {name: dict(counter) for name, counter in counters.items()} == counted


@torch.no_grad()
def test_the_users_compiled_model_is_not_disturbed() -> None:
    model, x = Encoder(SelfAttention()), tokens()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter)
    compiled(x)
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        explain(model, tokens(3)).expect(attention=1)
        explain(compiled, x).expect(attention=1)
    compiled(x)
    assert counter.frame_count == 1
    compiled(tokens(4))
    assert counter.frame_count == 2


def test_options_of_a_compiled_function_are_given_again() -> None:
    def gated(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x[..., :4]) * x[..., 4:]

    x, always = torch.randn(3, 8), {"fuser.policy": "always"}
    compiled = torch.compile(gated, backend="fuser", options={"fuser.inner": "eager", **always})
    compiled(x)
    explain(compiled, x).expect(activation=0)
    explain(compiled, x, options=always).expect(activation=1)


@torch.no_grad()
def test_sizes_seen_here_do_not_make_the_users_compile_dynamic() -> None:
    model = Encoder(SelfAttention())
    for batch in (3, 5):
        report = explain(model, tokens(batch))
        (rewrite,) = report.rewritten
        assert f"float32[{batch}, 4, 64, 64]" in rewrite.removed[0]
    counter = CompileCounterWithBackend("eager")
    torch.compile(model, backend=counter)(tokens(2))
    placeholders = [n for n in counter.graphs[0].graph.nodes if n.op == "placeholder"]
    shapes = [n.meta["example_value"].shape for n in placeholders]
    assert all(isinstance(size, int) for shape in shapes for size in shape)


@torch.no_grad()
def test_a_module_compiled_in_place_is_explained_and_stays_compiled() -> None:
    model, x = Encoder(SelfAttention()), tokens()
    counter = CompileCounterWithBackend("eager")
    model.compile(backend=counter)
    model(x)
    explain(model, x).expect(attention=1)
    model(x)
    assert counter.frame_count == 1


class _Broken(Pattern):
    id: ClassVar[str] = "mine.broken"

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return [node for node in view.nodes if view.op(node).name == "softmax"]

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        raise ZeroDivisionError("a bug of the plug-in")


@torch.no_grad()
def test_a_failing_pattern_is_reported() -> None:
    registry.patterns()
    registry.add(_Broken(), "this test")
    try:
        with pytest.warns(FuserWarning, match="mine.broken"):
            report = explain(Encoder(SelfAttention(leaky=True)), tokens())
    finally:
        registry.remove("mine.broken")
    (failure,) = report.failures
    assert failure.error == "ZeroDivisionError: a bug of the plug-in"
    assert failure.where.line == line_of("softmax")
    assert "FAILED  mine.broken" in str(report)


def test_what_the_function_raises_passes_through() -> None:
    def fails(x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        explain(fails, torch.ones(2))


@torch.no_grad()
def test_a_forward_compiled_in_place_is_explained_and_stays_compiled() -> None:
    model, x = Encoder(SelfAttention()), tokens()
    counter = CompileCounterWithBackend("eager")
    model.forward = torch.compile(model.forward, backend=counter)
    model(x)
    explain(model, x).expect(attention=1)
    model(x)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("wrong", "text"), [(Encoder, "the class Encoder; make an instance"), (3, "3, which cannot")]
)
def test_what_cannot_be_explained(wrong: Any, text: str) -> None:
    call = Encoder.__call__
    with pytest.raises(FuserError, match=text):
        explain(wrong)
    assert Encoder.__call__ is call


def test_threads_take_turns() -> None:
    """Run together they end in a segmentation fault: Dynamo's state is cleared under the others."""
    q = torch.randn(1, 2, 16, 8)
    counts: list[int] = []

    def work(scale: float) -> None:
        def attend(q: Tensor) -> Tensor:
            return (q @ q.mT * scale).softmax(-1) @ q

        for _ in range(3):
            counts.append(explain(attend, q, options={"fuser.policy": "always"}).count())

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (0.5, 1.5, 2.5, 3.5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 12


@pytest.mark.parametrize("grad", [False, True])
def test_a_checkpoint_without_gradients_is_looked_at_and_left(grad: bool) -> None:
    def attend(q: Tensor) -> Tensor:
        return (q @ q.mT).softmax(-1) @ q

    def model(q: Tensor) -> Tensor:
        return checkpoint(attend, q, use_reentrant=False)

    q = torch.randn(1, 2, 16, 8, requires_grad=grad)
    report = explain(model, q, options={"fuser.policy": "always"})
    assert report.count() == int(grad)
    assert [m.reason.startswith("no gradient goes through") for m in report.left] == [True] * (
        not grad
    )


@pytest.mark.parametrize(("family", "wanted"), [("attenion", 0), ("attention.sofmax", 0)])
def test_expecting_a_family_that_is_none(family: str, wanted: int) -> None:
    report = Report()
    with pytest.raises(FuserError, match="no pattern or family is called"):
        report.expect(**{family: wanted})
    with pytest.raises(FuserError, match="a number of regions"):
        report.expect(attention="0")  # type: ignore[arg-type]
    report.expect(attention=0, moe=0, **{"attention.softmax": 0})
    assert len({report, Report()}) == 2
