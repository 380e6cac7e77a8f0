"""`check_pattern`: it passes what is right, and names the check that fails for what is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fuser.errors import PatternError
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import patterns, register_pattern, unregister_pattern
from fuser.testing import PatternReport, check_pattern

X, W = torch.randn(5, 6), torch.randn(7, 6)


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    y = x.float()
    return w * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rms_fused(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype) * w


def scores(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w.mT).exp().sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_pattern_passes(dtype: torch.dtype) -> None:
    report = check_pattern((rms, rms_fused, (X.to(dtype), W[0].to(dtype), 1e-6)))
    assert isinstance(report, PatternReport)
    assert report.pattern == "check.rms"
    assert "an intermediate value is used elsewhere: returned" in report.escapes
    assert report.error is not None
    assert report.error <= 1
    assert report.gradient_error is not None
    assert report.gradient_error <= 1
    assert report.grown
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.error = 0.0  # type: ignore[misc]
    assert "check.rms" not in {r.pattern.id for r in patterns()}


def test_by_id_and_by_handle() -> None:
    with register_pattern(scores, lambda x, w: scores(x, w), (X, W), id="mine.scores") as handle:
        assert check_pattern("mine.scores") == check_pattern(handle)
        assert check_pattern(handle.pattern, dynamic=False).grown is False
        more = check_pattern(handle, example_inputs=(torch.randn(2, 3, 4), torch.randn(2, 5, 4)))
        assert more.pattern == "mine.scores"
    with pytest.raises(PatternError, match=r"no pattern 'mine\.scores'"):
        check_pattern("mine.scores")


class Halved(torch.autograd.Function):
    """Right forward, wrong backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


FAILING: dict[str, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    "wrong values": (
        scores,
        lambda x, w: (x @ w.mT).exp().sum(-1) * 1.01,
        "fails the check 'numbers': value 0 is off by .* is allowed",
    ),
    "less precise": (
        scores,
        lambda x, w: (x.bfloat16() @ w.bfloat16().mT).float().exp().sum(-1),
        "fails the check 'numbers': value 0 is off by",
    ),
    "NaN": (
        scores,
        lambda x, w: scores(x, w) / scores(x, w).floor().sign().relu().sub(1),
        "fails the check 'numbers': value 0 is finite elsewhere",
    ),
    "wrong gradients": (
        scores,
        lambda x, w: Halved.apply(scores(x, w)),
        "fails the check 'gradients': value 0 is off by",
    ),
    "one shape only": (
        scores,
        lambda x, w: scores(x, w).reshape(5),
        "fails the check 'dynamic': expected 1 rewrite of `find`, found 0 .*shape",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_the_failing_check_is_named(name: str) -> None:
    find, replacement, text = FAILING[name]
    with pytest.raises(AssertionError, match=text):
        check_pattern((find, replacement, (X, W)))


def test_a_predicate_that_refuses_the_examples() -> None:
    where = lambda x: "too small" if x.shape[0] < 100 else None  # noqa: E731
    with pytest.raises(AssertionError, match=r"the check 'fires': expected 1 .* 0 \(too small\)"):
        check_pattern((scores, lambda x, w: scores(x, w), (X, W)), where=where)


def test_several_outputs_and_integers() -> None:
    def find(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x @ w.mT
        return y.amax(-1), y.argmax(-1)

    def replacement(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        best = torch.max(x @ w.mT, dim=-1)
        return best[0], best[1]

    report = check_pattern((find, replacement, (X, W)))
    assert report.gradient_error is not None


def test_random_patterns_are_not_compared() -> None:
    def find(x: Tensor) -> Tensor:
        return F.dropout(x.exp(), 0.5).sin()

    report = check_pattern((find, lambda x: torch.sin(F.dropout(torch.exp(x), 0.5)), (X,)))
    assert report.error is None
    assert report.escapes


class Greedy(Pattern):
    """Takes exp and sin, whoever else reads the exp; the engine must not let it."""

    id: ClassVar[str] = "mine.greedy"

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return [n for n in view.nodes if view.op(n).name == "sin"]

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        source = view.op(anchor).args["input"]
        first = view.op(source).args["input"]
        return Match(
            self.id,
            anchor,
            frozenset([anchor, source]),
            (anchor,),
            replacement=lambda b: [b.call(torch.sin, b.call(torch.exp, first))],
        )


class Careless(Greedy):
    """Puts another exp there and leaves the first one: fires although it escapes."""

    id: ClassVar[str] = "mine.careless"

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        first = view.op(view.op(anchor).args["input"]).args["input"]
        return Match(
            self.id,
            anchor,
            frozenset([anchor]),
            (anchor,),
            replacement=lambda b: [b.call(torch.sin, b.call(torch.exp, first))],
        )


def test_structural_patterns() -> None:
    def find(x: Tensor) -> Tensor:
        return x.exp().sin()

    register_pattern(Greedy)
    register_pattern(Careless)
    try:
        report = check_pattern("mine.greedy", find=find, example_inputs=(X,))
        assert report.escapes == ("an intermediate value is used elsewhere: returned",)
        with pytest.raises(PatternError, match="is a class: give check_pattern find= and example"):
            check_pattern("mine.greedy")
        with pytest.raises(AssertionError, match="the check 'escape': it fires although `exp` is"):
            check_pattern("mine.careless", find=find, example_inputs=(X,))
    finally:
        unregister_pattern("mine.greedy")
        unregister_pattern("mine.careless")
