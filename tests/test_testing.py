"""`check_pattern`: it passes what is right, and names the check that fails for what is not."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx import Node

from fuser import precision
from fuser.errors import PatternError
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.precision import Imprecise, compare
from fuser.registry import patterns, register_pattern, unregister_pattern
from fuser.testing import PatternReport, check_pattern
from fuser.variants import other_scalars
from tests.every import some

SEEDED = torch.Generator().manual_seed(0)  # not the global one, from which other tests draw
X, W = torch.randn(5, 6, generator=SEEDED), torch.randn(7, 6, generator=SEEDED)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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


@torch.library.custom_op("fuser_testing::unlearned", mutates_args=())
def unlearned(x: Tensor) -> Tensor:
    return x.exp()


@torch.library.custom_op("fuser_testing::moody", mutates_args=())
def moody(x: Tensor) -> Tensor:
    raise RuntimeError("not today")


for operator in (unlearned, moody):
    operator.register_fake(torch.empty_like)
moody.register_autograd(lambda ctx, grad: grad)


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
        "fails the check 'dynamic': with larger sizes, expected 1 rewrite .* found 0 .*shape",
    ),
    "gradients of one input": (
        scores,
        lambda x, w: scores(x, w.detach()),
        "fails the check 'gradients': none reaches tensor 1: the replacement detaches it, or has",
    ),
    "no gradients at all": (
        scores,
        lambda x, w: unlearned(x @ w.mT).sum(-1),
        "fails the check 'fires': .*`fuser_testing.unlearned.default` of the replacement has no",
    ),
    "raises": (
        scores,
        lambda x, w: moody(x @ w.mT).sum(-1),
        "fails the check 'fires': the compiled `find` fails: RuntimeError: not today",
    ),
    "one rank only": (
        lambda x, w: (x @ w.mT).softmax(-1),
        lambda x, w: (x @ w.mT).softmax(1),
        r"fails the check 'ranks': with shapes \(2, 5, 6\), \(2, 7, 6\), value 0 is off by",
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


def test_the_rank_of_the_largest_tensors_is_varied_alone() -> None:
    def find(x: Tensor, w: Tensor) -> Tensor:
        return x.softmax(-1) * w

    report = check_pattern((find, lambda x, w: find(x, w), (X, W[0])))
    assert "shapes (2, 5, 6), (6,)" in report.varied
    with pytest.raises(AssertionError, match=r"with shapes \(2, 5, 6\), \(6,\), value 0 is off"):
        check_pattern((find, lambda x, w: x.softmax(1) * w, (X, W[0])))


def scaled(x: Tensor, s: float) -> Tensor:
    return x.exp() * s


@pytest.mark.parametrize(
    ("replacement", "at"),
    [
        (lambda x, s: x.exp() * 2.0, "s = 1.5"),
        (lambda x, s: x.exp() * (s * s) ** 0.5, "s = -2.0"),
    ],
)
def test_scalars_are_varied(replacement: Callable[..., Any], at: str) -> None:
    with pytest.raises(AssertionError, match=f"the check 'scalars': with {at}, value 0 is off"):
        check_pattern((scaled, replacement, (X, 2.0)))
    positive = lambda s: None if s == 2 else "another scale"  # noqa: E731
    varied = check_pattern((scaled, replacement, (X, 2.0)), where=positive).varied
    assert "shapes (2, 5, 6)" in varied
    assert not any(place.startswith("s = ") for place in varied)


def test_integers_and_flags_are_varied() -> None:
    def find(x: Tensor, dim: int, keep: bool) -> Tensor:
        return x.exp().sum(dim, keepdim=keep).sin()

    def replacement(x: Tensor, dim: int, keep: bool) -> Tensor:
        return torch.sin(torch.sum(torch.exp(x), dim, keepdim=keep))

    report = check_pattern((find, replacement, (X, 1, False)))
    assert {"dim = 0", "dim = -1", "keep = True"} <= set(report.varied)
    assert "dim = 2" not in report.varied  # which `find` does not take
    square = torch.randn(5, 5)
    with pytest.raises(AssertionError, match="'scalars': with dim = 0, value 0 is off"):
        check_pattern((find, lambda x, d, k: x.exp().sum(-1, keepdim=k).sin(), (square, 1, False)))


def test_other_scalars() -> None:
    assert other_scalars(2.0) == [1.5, 2.25, -2.0]
    assert other_scalars(0.0) == [0.25, -0.25]
    assert other_scalars(float("-inf")) == [float("inf")]
    assert other_scalars(2) == [3, 4, 1, -2]
    assert other_scalars(True) == [False]
    assert other_scalars(torch.float32) == []


def dropped(x: Tensor, p: float) -> Tensor:
    return F.dropout(x.exp(), p).sin()


def by_hand(x: Tensor, p: float) -> Tensor:
    return torch.sin(torch.where(torch.rand_like(x) < p, 0.0, x.exp() / (1 - p)))


@pytest.mark.parametrize(
    "replacement",
    some([lambda x, p: by_hand(x, p), lambda x, p: torch.sin(F.dropout(torch.exp(x), p))], 2),
    ids=some(["other numbers", "the same numbers"], 2),
)
def test_random_patterns_are_compared_by_statistics(replacement: Callable[..., Any]) -> None:
    report = check_pattern((dropped, replacement, (X, 0.5)))
    assert report.random
    assert report.error is None
    assert report.escapes
    assert report.varied == ("p = 0.375", "p = 0.75", "shapes (2, 5, 6)")


@pytest.mark.parametrize(
    "replacement",
    [
        lambda x, p: x.exp().sin(),
        lambda x, p: F.dropout(x.exp(), 0.1).sin(),
        lambda x, p: F.dropout(x.exp(), p).sin() * 1.2,
        lambda x, p: (F.dropout(torch.ones_like(x[:, :1]), p) * x.exp()).sin(),
        lambda x, p: F.dropout(Halved.apply(x.exp()), p).sin(),
    ],
    ids=["none", "another rate", "another scale", "whole rows", "another gradient"],
)
def test_other_random_numbers_are_noticed(replacement: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match=r"'numbers': value \d: over 400 draws a "):
        check_pattern((dropped, replacement, (X, 0.5)))


def test_gradients_are_checked_where_the_caller_has_none() -> None:
    wrong = (scores, lambda x, w: scores(x.detach(), w), (X, W))
    for off in (torch.no_grad, torch.inference_mode):
        with pytest.raises(AssertionError, match="fails the check 'gradients'"), off():
            check_pattern(wrong)
    assert torch.is_grad_enabled()


def test_numbers_from_a_closure_are_constants() -> None:
    scale, width = 3.0, 2

    def find(x: Tensor) -> Tensor:
        return (x.exp() * scale).reshape(-1, width).sin()

    assert check_pattern((find, lambda x: find(x), (X,))).error is not None


def test_closures_stay_constants_with_dynamic_shapes() -> None:
    def scaled_by(scale: float) -> Callable[[Tensor], Tensor]:
        return lambda x: (x.exp() * scale).sin()

    assert check_pattern((scaled_by(0.3), scaled_by(0.3), (X,)), dynamic=True).grown
    with pytest.raises(AssertionError, match="'numbers': value 0 is off"):
        check_pattern((scaled_by(0.3), scaled_by(0.31), (X,)))


def test_inputs_made_in_inference_mode() -> None:
    with torch.inference_mode():
        x = torch.randn(3, 4)
        inside = check_pattern((scores, lambda x, w: scores(x, w), (x, x)))
    assert inside == check_pattern((scores, lambda x, w: scores(x, w), (x, x)))
    assert inside.gradient_error is not None


def test_eight_bits() -> None:
    def find(x: Tensor) -> Tensor:
        return x.float().exp().sin()

    report = check_pattern((find, lambda x: find(x), (X.to(torch.float8_e4m3fn),)))
    assert "shapes (2, 5, 6)" in report.varied
    assert report.grown


def test_complex_numbers() -> None:
    x, y = torch.randn(2, 5, dtype=torch.complex64)

    def find(x: Tensor, y: Tensor) -> Tensor:
        return x * y.exp()

    report = check_pattern((find, lambda x, y: torch.exp(y) * x, (x, y)))
    assert report.gradient_error is not None
    for wrong in (
        lambda x, y: x * y.exp().real,
        lambda x, y: x * y.exp().conj(),
        lambda x, y: torch.complex(x.real, x.imag * 1.001) * y.exp(),
    ):
        with pytest.raises((AssertionError, PatternError), match="'numbers': value 0 is off"):
            check_pattern((find, wrong, (x, y)))


def test_one_check_leaves_no_sizes_to_the_next() -> None:
    """Dynamo would take a size that differs from the last compile's for a dynamic one."""

    def find(x: Tensor) -> Tensor:
        return F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]

    def replacement(x: Tensor) -> Tensor:
        return x.chunk(2, -1)[1] * F.silu(x.chunk(2, -1)[0])

    for size in (8, 12, 20):
        report = check_pattern((find, replacement, (torch.randn(3, size),)), dynamic=False)
        assert f"shapes (2, 3, {size})" in report.varied


def test_right_patterns_pass_for_any_numbers() -> None:
    """Seeds at which `find` is almost exact by accident, so that its own error allows nothing."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x * 0.5**0.5))

    def run(seed: int, count: int, find: Callable[..., Any], put: Callable[..., Any]) -> None:
        torch.manual_seed(seed)
        inputs = (torch.randn(1, 1, 4, 4),) * 3 if count == 3 else (torch.randn(3, 4),)
        check_pattern((find, put, inputs), dynamic=False)

    for seed in some((52, 115, 138), 2):
        run(seed, 3, attention, lambda q, k, v: F.scaled_dot_product_attention(q, k, v))
        with pytest.raises(AssertionError, match="'numbers': value 0 is off"):
            run(seed, 3, attention, lambda q, k, v: attention(q, k, v) * 1.001)
    for seed in some((82, 186), 2):
        run(seed, 1, gelu, lambda x: F.gelu(x))
        with pytest.raises(AssertionError, match="'numbers': value 0 is off"):
            run(seed, 1, gelu, lambda x: F.gelu(x) * 1.001)


def test_what_is_allowed() -> None:
    exact = [torch.tensor([1.0, 0.5], dtype=torch.float64), torch.tensor([1e-6]).double()]
    theirs = [x.float() for x in exact]
    near = [theirs[0], theirs[1] + 2e-6]  # a sum that cancels is no better than its terms
    assert 0.5 < compare(near, theirs, exact, 3.0) < 1
    with pytest.raises(Imprecise, match=r"value 0 is off by 3\.81e-06 .* 2\.86e-06 is allowed"):
        compare([theirs[0] + 2.0**-18, theirs[1]], theirs, exact, 3.0)


def test_counters_and_random_state_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_DRAWS", 40)
    before = torch.random.get_rng_state()
    python = random.getstate()
    counters["fuser"]["mine.other"] += 3
    try:
        counted = {name: dict(counter) for name, counter in counters.items()}
        check_pattern((dropped, lambda x, p: dropped(x, p), (X, 0.5)), dynamic=False)
        assert {name: dict(counter) for name, counter in counters.items()} == counted
        assert torch.equal(before, torch.random.get_rng_state())
        assert python == random.getstate()
    finally:
        del counters["fuser"]["mine.other"]


def test_an_operator_without_gradients_in_find() -> None:
    report = check_pattern((lambda x: unlearned(x).sin(), lambda x: x.exp().sin(), (X,)))
    assert report.error is not None
    assert report.gradient_error is None


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a pair": ((scores, scores), {}, "or a tuple .*; it was given a tuple of 2"),
    "nothing": (None, {}, "check_pattern takes an id, .*; it was given None"),
    "a function": (scores, {}, "it was given the function scores"),
    "a module": ((torch.nn.ReLU(), scores, (X,)), {}, "`find` must be a Python function .* ReLU"),
    "a partial": ((partial(scores, X), scores, (X,)), {}, "`find` must be .* not partial; wrap it"),
    "inputs that are no tuple": (
        (scores, scores, (X, W)),
        {"example_inputs": X},
        "must be a tuple",
    ),
    "examples that are a number": ((scores, scores, 3), {}, "example_inputs must be a tuple"),
    "an array": ((scores, scores, (X, X.numpy())), {}, "example of `w` is, or holds, a ndarray"),
    "a list of tensors": ((scores, scores, (X, [W])), {}, "of `w` is, or holds, a Tensor"),
    "too few inputs": (
        (scores, scores, (X, W)),
        {"example_inputs": (X,)},
        r"`find` cannot be run .*missing 1 required positional argument: 'w'\.",
    ),
    "something that cannot be called": ((scores, 3, (X, W)), {}, "takes two functions and their"),
    "sparse": (
        (scores, scores, (X, W)),
        {"example_inputs": (X.to_sparse(), W)},
        "dense tensors that hold numbers",
    ),
    "meta": ((scores, scores, (X, W.to("meta"))), {}, "dense tensors that hold numbers|device"),
    "a factor": ((scores, scores, (X, W)), {"factor": 0.5}, "factor is 0.5; it must be a number,"),
    "no factor": ((scores, scores, (X, W)), {"factor": "3"}, "factor is '3'; it must be"),
    "inputs that do not fit": (
        (scores, lambda x, w: scores(x, w), (X, W)),
        {"example_inputs": (X, X.mT)},
        "`find` cannot be run on the example inputs, .*: RuntimeError: .*[^.]\\.$",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    pattern, keywords, text = BAD[name]
    with pytest.raises(PatternError, match=text):
        check_pattern(pattern, **keywords)


def test_where_beside_a_registered_pattern() -> None:
    with register_pattern(scores, lambda x, w: scores(x, w), (X, W), id="mine.scores") as handle:
        for pattern in (handle, handle.pattern, "mine.scores"):
            with pytest.raises(PatternError, match="where= goes with a pattern given as functions"):
                check_pattern(pattern, where=lambda: None)


def test_a_handle_that_is_not_registered_any_more() -> None:
    handle = register_pattern(scores, lambda x, w: scores(x, w), (X, W), id="mine.scores")
    handle.unregister()
    for pattern in (handle, handle.pattern):
        with pytest.raises(PatternError, match=r"'mine\.scores' is not registered, or not any"):
            check_pattern(pattern)
    with register_pattern(scores, lambda x, w: scores(x, w), (X, W), id="mine.scores"):
        with pytest.raises(PatternError, match="not any more"):  # another one has its id
            check_pattern(handle)


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


VALUES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    "other signs": (
        lambda x: F.leaky_relu(x, 0.01) * 2,
        lambda x: F.relu(x) * 2,
        (torch.linspace(0.1, 1, 12).reshape(3, 4),),
    ),
    "other signs, of a mask": (
        lambda x, m: x.masked_fill(m, -1e9).softmax(-1),
        lambda x, m: x.softmax(-1),
        (X, torch.zeros(5, 6, dtype=torch.bool)),
    ),
    "negative integers": (
        lambda x: x // 2 + 1,
        lambda x: torch.div(x, 2, rounding_mode="trunc") + 1,
        (torch.arange(12).reshape(3, 4),),
    ),
    "a zero": (
        lambda x: x.exp() * torch.sign(x),
        lambda x: x.exp() * torch.where(x >= 0, 1.0, -1.0),
        (X,),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_other_values_than_those_of_the_examples_are_compared(name: str) -> None:
    place = name.partition(",")[0]
    with pytest.raises(AssertionError, match=f"the check 'values': with {place}, value 0 "):
        check_pattern(VALUES[name], dynamic=False)


def test_values_that_find_does_not_take_are_not_compared() -> None:
    index = torch.tensor([[0, 3], [2, 1], [4, 4], [5, 0], [1, 1]])
    find = lambda x, i: x.gather(-1, i).exp()  # noqa: E731
    varied = check_pattern(
        (find, lambda x, i: torch.exp(torch.gather(x, -1, i)), (X, index))
    ).varied
    assert "other signs" in varied
    assert "negative integers" not in varied
    root = check_pattern((lambda x: x.sqrt() * 2, lambda x: 2 * x.sqrt(), (X.abs(),)))
    assert "other signs" not in root.varied
    # whose gradient is not a number at zero
    norm = check_pattern((lambda x: (x * x).sqrt() * 2, lambda x: x.abs() * 2, (X,)))
    assert "a zero" in norm.varied


def losses(x: Tensor, t: Tensor) -> Tensor:
    return -torch.log_softmax(x, -1).gather(-1, t.unsqueeze(-1)).squeeze(-1).mean()


SQUARE: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...], str]] = {
    "an axis from the front": (
        lambda x: x.mean(1) * 2,
        lambda x: x.mean(-1) * 2,
        (torch.randn(2, 3),),
        r"\(2, 3, 3\)",
    ),
    "classes in the middle": (
        losses,
        lambda x, t: F.cross_entropy(x, t),
        (torch.randn(4, 8), torch.arange(4)),
        r"\(2, 8, 8\), \(2, 8\)",
    ),
    "a scale for each row": (
        lambda x, w, s: x @ (w * s),
        lambda x, w, s: (x @ w) * s,
        (torch.randn(2, 4), torch.randn(4, 6), torch.randn(6)),
        r"\(6, 6\), \(6, 6\), \(6, 1\)",
    ),
}


@pytest.mark.parametrize("name", SQUARE)
def test_equal_sizes_are_tried(name: str) -> None:
    find, replacement, inputs, shapes = SQUARE[name]
    with pytest.raises(AssertionError, match=f"'sizes': with shapes {shapes}, value 0 is off"):
        check_pattern((find, replacement, inputs), dynamic=False)


@pytest.mark.parametrize(("rows", "columns"), some([(4, 16), (2, 32)], 2))
def test_sizes_that_where_declines_are_no_failure(rows: int, columns: int) -> None:
    def where(x: Tensor) -> str | None:
        return None if x.shape[-1] % 16 == 0 else "no multiple of 16"

    find = lambda x: (x * 2).exp()  # noqa: E731
    report = check_pattern(
        (find, lambda x: torch.exp(x + x), (torch.randn(rows, columns),)), where=where
    )
    assert report.grown
    only = lambda x: None if x.shape[-1] == columns else "another size"  # noqa: E731
    report = check_pattern(
        (find, lambda x: torch.exp(x + x), (torch.randn(rows, columns),)), where=only
    )
    assert not report.grown


@pytest.mark.parametrize("find", [lambda x: x.real.exp(), lambda x: x.H.exp()])
def test_a_view_that_the_tables_do_not_know_is_no_intermediate(find: Callable[..., Any]) -> None:
    assert (
        check_pattern((find, lambda x: torch.exp(find(x).log()), (X,)), dynamic=False).escapes == ()
    )


def test_what_fails_at_another_rank_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    find = lambda x: x.exp().sin()  # noqa: E731
    check_pattern((find, lambda x: x.t().exp().sin().contiguous().t(), (X,)))
    assert not caplog.records


def test_a_pattern_that_does_not_match_itself_is_named() -> None:
    find = lambda x: F.max_pool1d(x, 2, return_indices=True)[0]  # noqa: E731
    with pytest.raises(AssertionError, match="Dynamo captures of it looks like the pattern"):
        check_pattern((find, lambda x: find(x) * 1, (X[None],)))
    doubled = lambda x: find(x) * 2  # noqa: E731
    with pytest.raises(
        AssertionError, match="expected `max_pool1d_with_indices`, found `max_pool1"
    ):
        check_pattern((doubled, lambda x: 2 * find(x), (X[None],)))
