"""Patterns given as two functions: what they find, what they leave alone and why."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx import Node

from fuser.backend import listening
from fuser.errors import (
    FuserWarning,
    PatternError,
    PatternOutputsError,
    UnrunnablePatternError,
    UntraceablePatternError,
)
from fuser.events import Record
from fuser.graph.view import GraphView
from fuser.pattern import Pattern
from fuser.registry import register_pattern
from fuser.template.rounding import negative, reciprocal

ID = "mine.pattern"


def compiled(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    dynamic: bool | None = None,
    strict: bool = True,
    inner: str = "eager",
    fullgraph: bool = False,
) -> tuple[Any, Record]:
    """Output of a model compiled with the registered patterns of this file, and what happened."""
    torch._dynamo.reset()
    counters.clear()
    records: list[Record] = []
    options = {"fuser.inner": inner, "fuser.strict": strict, "fuser.patterns": ["mine.*"]}
    with listening(records.append):
        run = torch.compile(
            model, backend="fuser", options=options, dynamic=dynamic, fullgraph=fullgraph
        )
        out = run(*inputs)
    return out, records[-1]


def assert_fires(
    model: Callable[..., Any], inputs: Sequence[Any], times: int, **how: Any
) -> Record:
    out, record = compiled(model, inputs, **how)
    assert [r.pattern for r in record.rewritten] == [ID] * times
    assert counters["fuser"][ID] == times
    torch.testing.assert_close(out, model(*inputs))
    return record


def reasons(model: Callable[..., Any], inputs: Sequence[Any], **how: Any) -> list[str]:
    out, record = compiled(model, inputs, **how)
    assert not record.rewritten
    torch.testing.assert_close(out, model(*inputs))
    return [m.reason for m in record.near_misses]


def scores(x: Tensor, w: Tensor, s: float) -> Tensor:
    return torch.tanh((x @ w.transpose(-2, -1)) * s + 1.0).softmax(-1)


def scores_fused(x: Tensor, w: Tensor, s: float) -> Tensor:
    return torch.softmax(torch.tanh(torch.add(torch.matmul(x * s, w.mT), 1.0)), dim=-1)


def drawn(*size: int, seeded: torch.Generator = torch.Generator().manual_seed(0)) -> Tensor:  # noqa: B008
    return torch.randn(*size, generator=seeded)


X, W = drawn(3, 4), drawn(5, 4)
XB, WB = drawn(2, 3, 4), drawn(2, 5, 4)
XH, WH = drawn(2, 6, 3, 4), drawn(2, 6, 5, 4)
EXAMPLES = (X, W, 2.0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def softmax_scores() -> Any:
    with register_pattern(scores, scores_fused, EXAMPLES, id=ID) as handle:
        yield handle


def inplace(x: Tensor, w: Tensor) -> Tensor:
    s = torch.mm(x, w.t())
    s *= 0.5
    s = s.add_(1.0)
    return s.tanh_().softmax(dim=1)


def with_noops(x: Tensor, w: Tensor) -> Tensor:
    s = F.dropout((x @ w.mT).contiguous(), 0.5, training=False) * 0.5
    return F.softmax(F.dropout(torch.tanh(s.clone().float() + 1), p=0.0), -1)


SPELLINGS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, Tensor]]] = {
    "itself": (lambda x, w: scores(x, w, 0.5), (X, W)),
    "mm": (lambda x, w: F.softmax(torch.tanh(torch.mm(x, w.t()) * 3 + 1), 1), (X, W)),
    "T": (lambda x, w: torch.softmax((torch.matmul(x, w.T) * 3.0 + 1).tanh(), 1), (X, W)),
    "bmm": (lambda x, w: ((torch.bmm(x, w.mT) * 0.5 + 1).tanh()).softmax(2), (XB, WB)),
    "permute": (lambda x, w: (x @ w.permute(0, 1, 3, 2) * 0.5 + 1).tanh().softmax(3), (XH, WH)),
    "movedim": (lambda x, w: (x @ w.movedim(-1, -2) * 0.5 + 1).tanh().softmax(3), (XH, WH)),
    "commuted": (lambda x, w: (1.0 + 0.5 * (x @ w.mT)).tanh().softmax(-1), (X, W)),
    "functions": (
        lambda x, w: torch.softmax(
            input=torch.tanh(torch.add(1.0, torch.mul(other=0.5, input=x.matmul(w.mT)))), dim=-1
        ),
        (X, W),
    ),
    "divided": (lambda x, w: ((x @ w.mT) / 8 + 1.0).tanh().softmax(-1), (X, W)),
    "divided, not exactly": (lambda x, w: ((x @ w.mT) / 3 + 1.0).tanh().softmax(-1), (X, W)),
    "subtracted": (lambda x, w: ((x @ w.mT) * 0.5 - -1.0).tanh().softmax(-1), (X, W)),
    "linear": (lambda x, w: (F.linear(x, w) * 0.5 + 1.0).tanh().softmax(-1), (XB, W)),
    "einsum": (
        lambda x, w: (torch.einsum("bhqd,bhkd->bhqk", x, w) * 0.5 + 1.0).tanh().softmax(-1),
        (XH, WH),
    ),
    "einsum of another layout": (
        lambda x, w: (torch.einsum("bqhd,bkhd->bhqk", x, w) * 0.5 + 1.0).tanh().softmax(-1),
        (XH.transpose(1, 2), WH.transpose(1, 2)),
    ),
    "in place": (inplace, (X, W)),
    "no-ops": (with_noops, (X, W)),
    "bfloat16": (
        lambda x, w: (x @ w.mT * 0.5 + 1).tanh().softmax(-1),
        (XH.bfloat16(), WH.bfloat16()),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.usefixtures("softmax_scores")
def test_finds_every_spelling(name: str) -> None:
    model, inputs = SPELLINGS[name]
    out, record = compiled(model, inputs)
    assert len(record.rewritten) == 1, record.near_misses
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if inputs[0].dtype == torch.bfloat16 else {}
    torch.testing.assert_close(out, model(*inputs), **tolerance)


@pytest.mark.usefixtures("softmax_scores")
def test_finds_each_occurrence() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        for scale in (0.5, 0.25, 2):
            x = scores(x, w, scale) @ w
        return x

    record = assert_fires(model, (X, W), 3)
    assert [r.facts["s"] for r in record.rewritten] == ["0.5", "0.25", "2"]
    assert "tanh" in " ".join(record.rewritten[0].removed)


@pytest.mark.usefixtures("softmax_scores")
def test_spelling_of_the_pattern_does_not_matter_either() -> None:
    def find(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bqd,bkd->bqk", x, w).transpose(1, 2).exp()

    def replacement(x: Tensor, w: Tensor) -> Tensor:
        return torch.exp(torch.bmm(w, x.mT))

    with register_pattern(find, replacement, (XB, WB), id="mine.einsum"):
        _, record = compiled(lambda x, w: (x @ w.mT).permute(0, 2, 1).exp(), (XB, WB))
    assert [r.pattern for r in record.rewritten] == ["mine.einsum"]


DECLINED: dict[str, tuple[Callable[..., Any], str]] = {
    "another literal": (
        lambda x, w: ((x @ w.mT) * 0.5 + 1.5).tanh().softmax(-1),
        "the number in `add`|`other` of `add` is 1.5 instead of 1.0",
    ),
    "another operator": (
        lambda x, w: torch.sigmoid((x @ w.mT) * 0.5 + 1.0).softmax(-1),
        "",
    ),
    "an operator deeper down": (
        lambda x, w: ((x @ w.mT) ** 0.5 + 1.0).nan_to_num().tanh().softmax(-1),
        "expected `add`, found `nan_to_num`",
    ),
    "a tensor in the place of a scalar": (
        lambda x, w: ((x @ w.mT) * x.sum() + 1.0).tanh().softmax(-1),
        "is a tensor, not a number",
    ),
    "not transposed": (
        lambda x, w: ((x @ w) * 0.5 + 1.0).tanh().softmax(-1),
        "expected `transpose`, found an input",
    ),
    "an escaping intermediate": (
        lambda x, w: _escaping(x, w),
        "an intermediate value is used elsewhere: returned",
    ),
    "an intermediate used elsewhere": (
        lambda x, w: sum(_escaping(x, w)[:2]),
        "an intermediate value is used elsewhere, by `",
    ),
    "softmax in another type": (
        lambda x, w: F.softmax(torch.tanh((x @ w.mT) * 0.5 + 1.0), -1, dtype=torch.float64),
        "`dtype` of `softmax` is torch.float64 instead of None",
    ),
    "a cast that is none": (
        lambda x, w: (((x @ w.mT) * 0.5).half() + 1.0).tanh().softmax(-1),
        "expected `mul`, found `half`",
    ),
    "dropout that drops": (
        lambda x, w: F.dropout((x @ w.mT) * 0.5 + 1.0, 1.0).tanh().softmax(-1),
        "expected `add`, found `dropout`",
    ),
}


def _escaping(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    s = x @ w.mT
    return (s * 0.5 + 1.0).tanh().softmax(-1), s


@pytest.mark.parametrize("name", DECLINED)
@pytest.mark.usefixtures("softmax_scores")
def test_declines_with_the_reason(name: str) -> None:
    model, wanted = DECLINED[name]
    square = torch.randn(4, 4)
    found = reasons(model, (square, torch.randn(4, 4)))
    if not wanted:
        assert found == []  # only the anchor agreed: nothing to say
        return
    (reason,) = found
    assert any(part in reason for part in wanted.split("|")), reason


def test_another_dim_is_declined() -> None:
    def find(x: Tensor) -> Tensor:
        return x.exp().sin().sum(-1).cos()

    with register_pattern(find, lambda x: find(x), (X,), id=ID):
        assert_fires(lambda x: x.exp().sin().sum(dim=[1]).cos(), (X,), 1)
        (reason,) = reasons(lambda x: x.exp().sin().sum(0).cos()[:3], (X,))
        assert reason == "`dim` of `sum` is 0 instead of 1"
        record = reasons(lambda x: x.exp().sin().sum(-1, keepdim=True).cos(), (X,))
        assert record == ["`keepdim` of `sum` is True instead of False"]


@pytest.mark.usefixtures("softmax_scores")
def test_an_input_mutated_in_between_is_declined() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        x = x + 0
        s = x @ w.mT
        x.mul_(2)
        return (s * 0.5 + 1.0).tanh().softmax(-1) + x.sum()

    (reason,) = reasons(model, (X, W))
    assert "mutated" in reason


def test_a_result_written_to_later_keeps_memory_of_its_own() -> None:
    def find(x: Tensor) -> Tensor:
        return x.neg().neg()

    def model(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * 1
        y = x.neg().neg()
        y.add_(1)
        return x, y

    with register_pattern(find, lambda x: x.view_as(x), (X,), id=ID):
        (reason,) = reasons(model, (X,))
        assert "written to in place later" in reason
        assert_fires(lambda x: x.neg().neg() * 2, (X,), 1)
    with register_pattern(find, lambda x: x * 1, (X,), id=ID):
        assert_fires(model, (X,), 1)


def test_wrong_order_of_what_does_not_commute() -> None:
    def find(x: Tensor, y: Tensor) -> Tensor:
        return (x.exp() - y.sin()).tanh().relu()

    def replacement(x: Tensor, y: Tensor) -> Tensor:
        return F.relu(torch.tanh(torch.exp(x) - torch.sin(y)))

    with register_pattern(find, replacement, (X, X), id=ID):
        assert_fires(lambda x, y: (y.exp() - x.sin()).tanh().relu(), (X, X + 1), 1)
        (reason,) = reasons(lambda x, y: (x.sin() - y.exp()).tanh().relu(), (X, X + 1))
        assert reason == "expected `exp`, found `sin`"


def test_commutation_backtracks_and_comparisons_mirror() -> None:
    def find(x: Tensor, y: Tensor) -> Tensor:
        a = x.sin() + x.cos()
        return torch.where(x > y, a * y.exp(), a.sin() + y)

    def model(x: Tensor, y: Tensor) -> Tensor:
        a = x.cos() + x.sin()
        return (y + torch.sin(a)).masked_fill(y < x, 0) * 0 + torch.where(
            y < x, torch.exp(y) * a, y + torch.sin(a)
        )

    with register_pattern(find, lambda x, y: find(x, y), (X, X), id=ID):
        assert_fires(lambda x, y: model(x, y)[0], (X, X + 0.1), 0)  # two readers of a: it escapes
        assert_fires(
            lambda x, y: (lambda a: torch.where(y < x, torch.exp(y) * a, y + a.sin()))(
                x.cos() + x.sin()
            ),
            (X, X + 0.1),
            1,
        )


def test_masked_fill_is_where() -> None:
    def find(x: Tensor, m: Tensor) -> Tensor:
        return x.masked_fill(m, -1.0).exp()

    with register_pattern(find, lambda x, m: torch.where(m, -1.0, x).exp(), (X, X > 0), id=ID):
        assert_fires(lambda x, m: torch.where(m, -1.0, x).exp(), (X, X > 0), 1)
        assert_fires(lambda x, m: torch.where(m, x, -1.0).exp(), (X, X > 0), 0)


def test_scalars_are_bound_by_position_not_by_value() -> None:
    def find(x: Tensor, a: float, b: float) -> Tensor:
        return (x * a + b).sin() * a

    def replacement(x: Tensor, a: float, b: float) -> Tensor:
        return torch.sin(torch.add(x * a, b)).mul(a)

    with register_pattern(find, replacement, (X, 1.0, 1.0), id=ID):
        record = assert_fires(lambda x: (x * 2.0 + 2.0).sin() * 2, (X,), 1)
        assert record.rewritten[0].facts["a"] == "2.0"
        record = assert_fires(lambda x: (x * 2.0 + 3.0).sin() * 2, (X,), 1)
        assert record.rewritten[0].facts["b"] == "3.0"
        (reason,) = reasons(lambda x: (x * 2.0 + 3.0).sin() * 3.0, (X,))
        assert reason == "`a` stands for two different values, 2.0 and 3.0"


def test_one_tensor_argument_is_one_value() -> None:
    def find(x: Tensor, y: Tensor) -> Tensor:
        return x.exp() * y.sin() - x.cos()

    with register_pattern(find, lambda x, y: find(x, y), (X, X), id=ID):
        assert_fires(lambda x, y: x.exp() * y.sin() - x.cos(), (X, X + 1), 1)
        assert_fires(lambda x, y: x.exp() * y.sin() - x.contiguous().cos(), (X, X + 1), 1)
        (reason,) = reasons(lambda x, y: x.exp() * y.sin() - y.cos(), (X, X + 1))
        assert "`x` stands for two different values" in reason or "expected" in reason


def rms(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rms_fused(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w, eps)


def rms_spelled(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * (1e-5 + x.square().mean(dim=-1, keepdim=True)).rsqrt())


def test_gradients_and_dynamic_shapes() -> None:
    with register_pattern(rms, rms_fused, (X, X[0], 1e-6), id=ID):
        for dynamic in (None, True):
            x, w = torch.randn(2, 7, 6, requires_grad=True), torch.randn(6, requires_grad=True)
            out, record = compiled(rms_spelled, (x, w), dynamic=dynamic, inner="aot_eager")
            assert len(record.rewritten) == 1
            seed = torch.randn_like(out)
            ours = torch.autograd.grad(out, (x, w), seed)
            torch.testing.assert_close(ours, torch.autograd.grad(rms_spelled(x, w), (x, w), seed))


def test_a_scale_computed_from_a_shape() -> None:
    def find(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w.mT * x.shape[-1] ** -0.5).softmax(-1)

    def replacement(x: Tensor, w: Tensor) -> Tensor:
        return torch.softmax(x @ w.mT / math.sqrt(x.shape[-1]), -1)

    wide, narrow = (torch.randn(3, 48), torch.randn(5, 48)), (torch.randn(3, 9), torch.randn(5, 9))
    with register_pattern(find, replacement, (X, W), id=ID):
        assert_fires(lambda x, w: (x @ w.mT * 48**-0.5).softmax(-1), wide, 1)
        assert_fires(lambda x, w: (x @ w.mT * (1 / math.sqrt(48))).softmax(-1), wide, 1)
        assert_fires(lambda x, w: (x @ w.mT / math.sqrt(48)).softmax(-1), wide, 1)
        assert_fires(
            lambda x, w: (x @ w.mT * x.shape[-1] ** -0.5).softmax(-1), wide, 1, dynamic=True
        )
        (reason,) = reasons(lambda x, w: (x @ w.mT * 48**-0.5).softmax(-1), narrow)
        assert "instead of 0.333" in reason


WITH_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": lambda x: x.round(),
    "floor": lambda x: torch.floor(x),
    "ceil": lambda x: x.ceil(),
    "trunc": lambda x: torch.trunc(x),
    "frac": lambda x: x.frac(),
    "sign": lambda x: (x - 1).sign(),
    "floor_divide": lambda x: x // 1.0,
    "rounding_mode": lambda x: torch.div(x, 1.0, rounding_mode="floor"),
    "remainder": lambda x: x % 1.0,
    "fmod": lambda x: x.fmod(1.0),
    "comparison": lambda x: (x > 7).float(),
    "to an integer": lambda x: x.to(torch.int8).float(),
    "long": lambda x: x.long().float(),
    "to bool": lambda x: (x - 1).bool().float(),
    "to eight bits": lambda x: x.to(torch.float8_e4m3fn).float(),
    "argmax": lambda x: x.argmax(-1).float(),
    "topk": lambda x: x.topk(2)[1].float(),
    "isnan": lambda x: x.isnan().float(),
    "nextafter": lambda x: torch.nextafter(x, x + 1.0),
    "an operator of another library": lambda x: scaled_sine(x, 1.0),
    "behind others": lambda x: (x * 2.0).abs().round() + 1.0,
}


@pytest.mark.parametrize("name", WITH_STEPS)
def test_only_exact_reciprocals_before_an_operator_with_steps(name: str) -> None:
    steps = WITH_STEPS[name]

    def find(x: Tensor, s: float) -> Tensor:
        return steps(x * s).cos().abs()

    x = torch.arange(-300, 300).float()[None] * 0.05
    with register_pattern(find, lambda x, s: find(x, s), (X, 2.0), id=ID):
        for exact in (0.25, -4, 2.0**-100):
            assert_fires(lambda x, c=exact: steps(x / c).cos().abs(), (x,), 1)
        (reason,) = reasons(lambda x: steps(x / 0.3).cos().abs(), (x,))
        assert reason == "`div` with 0.3 is not for certain a `mul`"


def test_a_result_that_no_operator_with_steps_reads_need_not_be_exact() -> None:
    def scaled(x: Tensor, m: Tensor, s: float) -> Tensor:
        return (x * s).masked_fill(m == 0, -1.0).exp()

    with register_pattern(scaled, lambda x, m, s: scaled(x, m, s), (X, X, 2.0), id=ID):
        record = assert_fires(lambda x, m: (x / 3).masked_fill(m == 0, -1.0).exp(), (X, X), 1)
        assert record.rewritten[0].facts["s"] == str(1 / 3)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (torch.float32, 1e39),
        (torch.float32, 1e-39),
        (torch.float32, 1e38),  # its reciprocal is denormal
        (torch.float16, 1e5),
        (torch.float16, 2.0**15),
        (torch.float64, 1e-310),
    ],
)
def test_reciprocals_are_normal_numbers_of_the_type(dtype: torch.dtype, number: float) -> None:
    def find(x: Tensor, s: float) -> Tensor:
        return (x * s).tanh().abs()

    x = torch.tensor([1e-3, 2.0, 6e4], dtype=dtype)
    with register_pattern(find, lambda x, s: find(x, s), (X, 2.0), id=ID):
        assert_fires(lambda x: (x / 3).tanh().abs(), (x,), 1)
        assert reasons(lambda x: (x / number).tanh().abs(), (x,)) == [
            f"`div` with {number!r} is not for certain a `mul`"
        ]
    assert reciprocal(10**400, dtype, exact=False) is None


def test_scalars_that_are_equal_up_to_rounding() -> None:
    """`d ** -0.5` and `1 / math.sqrt(d)` differ in the last bit for d = 48."""

    def smooth(x: Tensor) -> Tensor:
        return (x * x.shape[-1] ** -0.5).tanh().abs()

    def stepped(x: Tensor) -> Tensor:
        return (x * x.shape[-1] ** -0.5).round().abs()

    x, other = torch.randn(3, 48, dtype=torch.float64), 1 / math.sqrt(48)
    assert other != 48**-0.5
    with register_pattern(smooth, lambda x: smooth(x), (X,), id=ID):
        assert_fires(lambda x: (x * other).tanh().abs(), (x,), 1)
    with register_pattern(stepped, lambda x: stepped(x), (X,), id=ID):
        assert_fires(lambda x: (x * 48**-0.5).round().abs(), (x,), 1)
        (reason,) = reasons(lambda x: (x * other).round().abs(), (x,))
        assert f"is {other} instead of {48**-0.5}" in reason


def test_an_einsum_is_a_matmul_only_up_to_rounding() -> None:
    def product(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w.mT).round().abs()

    def einsum(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("bqd,bkd->bqk", x, w).round().abs()

    for find, other in ((product, einsum), (einsum, product)):
        with register_pattern(find, lambda x, w, f=find: f(x, w), (XB, WB), id=ID):
            assert_fires(find, (XB, WB), 1)
            assert len(reasons(other, (XB, WB))) == 1
    with register_pattern(product, lambda x, w: product(x, w), (X, W), id=ID):
        assert_fires(lambda x, w: F.linear(x, w).round().abs(), (X, W), 1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_what_cannot_be_negative_is_not_subtracted_from(dtype: torch.dtype) -> None:
    def find(x: Tensor, s: float) -> Tensor:
        return torch.exp(x - s).tanh()

    def model(m: Tensor) -> Tensor:
        return torch.exp(m + 3).tanh()

    with register_pattern(find, lambda x, s: find(x, s), (X, 2.0), id=ID):
        for signed in (torch.float16, torch.int8, torch.int64):
            assert_fires(model, (torch.tensor([-1, 0, 1]).to(signed),), 1)
        assert reasons(model, (torch.tensor([1, 0, 1]).to(dtype),)) == [
            "`add` with 3 is not for certain a `sub`"
        ]


def test_numbers_without_a_negative() -> None:
    assert negative(-128, torch.int8) is None
    assert negative(127, torch.int8) == -127
    assert negative(0, torch.float32) is None  # -0.0 + 0 is 0.0, -0.0 - 0 is -0.0
    assert negative(2.5, torch.int8) == -2.5


def test_a_negative_added_is_subtracted() -> None:
    def difference(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).exp().abs()

    def negated(x: Tensor, y: Tensor) -> Tensor:
        return (-y + x).exp().abs()

    def other(x: Tensor, y: Tensor) -> Tensor:
        return (x + y.neg()).exp().abs()

    small = torch.tensor([-128, 3], dtype=torch.int8)
    for find in (difference, negated):
        with register_pattern(find, lambda x, y, f=find: f(x, y), (X, X), id=ID):
            for model in (difference, negated, other):
                assert_fires(model, (X, X + 1), 1)
        # in eight bits the negative of -128 is -128, and a truth value is not subtracted from
        with register_pattern(find, lambda x, y, f=find: f(x, y), (X, X), id=ID):
            other_form = negated if find is difference else difference
            assert_fires(find, (small.int(), small), 1)
            assert_fires(other_form, (small.int(), small), 0)
    with register_pattern(difference, lambda x, y: difference(x, y), (X, X), id=ID):
        assert_fires(negated, (small.bool(), small), 0)


def test_a_product_with_itself_is_a_square() -> None:
    def power(x: Tensor) -> Tensor:
        return x.pow(2).mean(-1).rsqrt()

    def product(x: Tensor) -> Tensor:
        return (x * x).mean(-1).rsqrt()

    for find in (power, product):
        with register_pattern(find, lambda x, f=find: f(x), (X,), id=ID):
            for model in (power, product, lambda x: x.square().mean(-1).rsqrt()):
                assert_fires(model, (X,), 1)
            assert_fires(lambda x: x.pow(3).mean(-1).rsqrt(), (X.abs(),), 0)
            assert_fires(lambda x: (x * x[:1]).mean(-1).rsqrt(), (X.abs(),), 0)
    with register_pattern(lambda x, e: x.exp() ** e, lambda x, e: x.exp() ** e, (X, 3), id=ID):
        record = assert_fires(lambda x: (lambda y: y * y)(x.exp()), (X,), 1)
        assert record.rewritten[0].facts["e"] == "2"


def test_a_fill_that_overflows_is_no_masked_fill() -> None:
    def find(x: Tensor, m: Tensor, s: float) -> Tensor:
        return x.masked_fill(m, s).tanh().abs()

    def model(x: Tensor, m: Tensor) -> Tensor:
        return torch.where(m, -1e9, x).tanh().abs()

    with register_pattern(find, lambda x, m, s: find(x, m, s), (X, X > 0, 1.0), id=ID):
        assert_fires(model, (X, X > 0), 1)
        (reason,) = reasons(model, (X.half(), X > 0))
        assert "masked_fill refuses" in reason


def test_views_are_compared_by_what_they_do() -> None:
    def find(x: Tensor, heads: int) -> Tensor:
        b, s, d = x.shape
        return x.reshape(b, s, heads, d // heads).transpose(1, 2).exp()

    def replacement(x: Tensor, heads: int) -> Tensor:
        return torch.exp(x.unflatten(-1, (heads, -1)).permute(0, 2, 1, 3))

    x = torch.randn(2, 5, 8)
    with register_pattern(find, replacement, (x, 2), id=ID):
        for model in (
            lambda x: x.view(2, -1, 4, 2).permute(0, 2, 1, 3).exp(),
            lambda x: x.unflatten(2, (4, 2)).swapaxes(-3, -2).exp(),
            lambda x: x.view(x.size(0), x.size(1), 4, -1).transpose(2, 1).contiguous().exp(),
        ):
            for dynamic in (None, True):
                record = assert_fires(model, (x,), 1, dynamic=dynamic)
                assert record.rewritten[0].facts["heads"] == "4"
        assert_fires(lambda x: x.view(2, 5, 4, 2).transpose(1, 3).exp(), (x,), 0)
        assert_fires(lambda x: x.view(2, 4, 5, 2).transpose(1, 2).exp(), (x,), 0)
        assert_fires(lambda x: x.view(10, 4, 2).transpose(0, 1).exp(), (x,), 0)


def test_slices_and_tuples() -> None:
    def find(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), dim=-1)

    def replacement(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([b.neg(), a], -1)

    x = torch.randn(2, 3, 8)
    with register_pattern(find, replacement, (torch.randn(2, 4),), id=ID):
        assert_fires(lambda x: torch.cat([-x[:, :, 4:], x[:, :, 0:4]], 2), (x,), 1)
        assert_fires(lambda x: torch.cat([-x[:, :, 3:], x[:, :, 0:3]], 2), (x,), 0)
        assert_fires(lambda x: torch.cat([x[:, :, :4], -x[:, :, 4:]], 2), (x,), 0)
    with register_pattern(replacement, find, (torch.randn(2, 4),), id=ID):
        assert_fires(lambda x: (lambda p: torch.cat([-p[1], p[0]], -1))(x.chunk(2, -1)), (x,), 1)


def test_operators_that_the_tables_do_not_know() -> None:
    def find(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.relu(F.layer_norm(x, (x.shape[-1],), w, b).cumsum(-1))

    def replacement(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), w, b).cumsum(-1).clamp(min=0)

    inputs = (X, X[0], X[1])
    with register_pattern(find, replacement, inputs, id=ID):
        assert_fires(
            lambda x, w, b: torch.cumsum(F.layer_norm(x, [4], bias=b, weight=w), dim=1).relu(),
            inputs,
            1,
        )
        (reason,) = reasons(
            lambda x, w, b: F.layer_norm(x, [4], w, b, 1e-3).cumsum(1).relu(), inputs
        )
        assert reason == "`eps` of `layer_norm` is 0.001 instead of 1e-05"


def test_autocast_is_respected() -> None:
    def model(x: Tensor, w: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return (x @ w.mT).exp() * 1.0

    def find(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w.mT).exp()

    with register_pattern(find, lambda x, w: torch.exp(F.linear(x, w)), (X, W), id=ID):
        assert reasons(model, (X, W)) == [
            "`matmul` gives torch.bfloat16 where the pattern gives torch.float32"
        ]
        with torch.autocast("cpu", torch.bfloat16):
            assert_fires(lambda x, w: (x @ w.mT).exp(), (X, W), 1)


def two(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = (x @ w).exp()
    return y.sin(), y.cos()


def two_fused(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.exp(x @ w)
    return torch.sin(y), torch.sin(y + math.pi / 2)


def test_several_outputs() -> None:
    square = torch.randn(4, 4)
    with register_pattern(two, two_fused, (X, square), id=ID):

        def model(x: Tensor, w: Tensor) -> Tensor:
            y = torch.exp(torch.mm(x, w))
            c, s = torch.cos(y), torch.sin(y)
            return c * 2 + s

        assert_fires(model, (X, square), 1, inner="aot_eager")
        assert_fires(model, (X, square), 1, dynamic=True)
        (reason,) = reasons(lambda x, w: (x @ w).exp().sin(), (X, square))
        assert reason == "no `cos` reads this value, as another output does"


def test_an_output_that_is_also_an_intermediate() -> None:
    def find(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        h = x + w
        return h, h.pow(2).mean(-1)

    def replacement(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.add(x, w)
        return h, (h * h).mean(-1)

    def model(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        h = w + x
        return h.square().mean(dim=-1), h

    with register_pattern(find, replacement, (X, X), id=ID):
        assert_fires(model, (X, X + 1), 1)


def test_where_sees_what_was_bound() -> None:
    seen: list[Any] = []

    def where(x: Tensor, s: float) -> str | None:
        seen.append((tuple(x.shape), x.dtype, s))
        return "the scale is too large" if s > 1 else None

    with register_pattern(scores, scores_fused, EXAMPLES, id=ID, where=where):
        assert_fires(lambda x, w: scores(x, w, 0.5), (XB, WB), 1)
        assert seen == [((2, 3, 4), torch.float32, 0.5)]
        assert reasons(lambda x, w: scores(x, w, 1.5), (X, W)) == ["the scale is too large"]


@pytest.mark.parametrize("answer", [True, False, 0])
def test_where_must_answer_with_a_reason(answer: Any) -> None:
    with (
        register_pattern(scores, scores_fused, EXAMPLES, id=ID, where=lambda: answer),
        pytest.warns(FuserWarning, match="must return None to accept"),
    ):
        assert not compiled(lambda x, w: scores(x, w, 0.5), (X, W), strict=False)[1].rewritten


def test_where_that_declines_without_a_reason() -> None:
    with register_pattern(scores, scores_fused, EXAMPLES, id=ID, where=lambda: ""):
        assert reasons(lambda x, w: scores(x, w, 0.5), (X, W)) == ["`where` declined"]


def test_where_with_defaults_of_its_own() -> None:
    def where(s: float, limit: float = 1.0, *, what: str = "the scale") -> str | None:
        return f"{what} is above {limit}" if s > limit else None

    with register_pattern(scores, scores_fused, EXAMPLES, id=ID, where=where):
        assert_fires(lambda x, w: scores(x, w, 0.5), (X, W), 1)
        assert reasons(lambda x, w: scores(x, w, 1.5), (X, W)) == ["the scale is above 1.0"]


def test_where_that_raises_costs_one_warning() -> None:
    def where(x: Tensor) -> str | None:
        raise RuntimeError("a mistake in the predicate")

    with register_pattern(scores, scores_fused, EXAMPLES, id=ID, where=where):
        with pytest.warns(FuserWarning, match="a mistake in the predicate") as caught:
            out, record = compiled(lambda x, w: scores(x, w, 0.5), (X, W), strict=False)
        assert len(caught) == 1
        assert not record.rewritten
        torch.testing.assert_close(out, scores(X, W, 0.5))


def test_a_replacement_that_differs_at_other_shapes_costs_one_warning() -> None:
    def find(x: Tensor) -> Tensor:
        return x.exp().sum(-1)

    def replacement(x: Tensor) -> Tensor:
        return torch.exp(x)[..., 0] * 4

    def wrong(x: Tensor) -> Tensor:
        return torch.exp(x).sum(-1).reshape(3)

    with register_pattern(find, replacement, (X,), id=ID):
        _, record = compiled(lambda x: x.exp().sum(-1), (X,))
        assert len(record.rewritten) == 1  # what the values are is the author's word
    with register_pattern(find, wrong, (X,), id=ID):
        with pytest.warns(FuserWarning, match=ID) as caught:
            out, record = compiled(lambda x: x.exp().sum(-1), (XB,), strict=False)
        assert len(caught) == 1
        torch.testing.assert_close(out, XB.exp().sum(-1))
        with pytest.raises(Exception, match="shape"):
            compiled(lambda x: x.exp().sum(-1), (XB,), strict=True)


class Doubled(torch.autograd.Function):
    """A sine whose backward is twice what it should be, so that one sees whose was used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0].cos()


@torch.library.custom_op("fuser_test::scaled_sine", mutates_args=())
def scaled_sine(x: Tensor, scale: float) -> Tensor:
    return x.sin() * scale


@scaled_sine.register_fake
def _(x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


def test_autograd_functions_and_library_operators_in_the_replacement() -> None:
    def find(x: Tensor, s: float) -> Tensor:
        return x.sin() * s

    x = torch.randn(3, 4, requires_grad=True)
    with register_pattern(find, lambda x, s: Doubled.apply(x) * s, (X, 2.0), id=ID):
        out, record = compiled(lambda x: x.sin() * 3.0, (x,), inner="aot_eager")
        assert len(record.rewritten) == 1
        (grad,) = torch.autograd.grad(out.sum(), (x,))
        torch.testing.assert_close(grad, 6 * x.cos())
    with register_pattern(find, lambda x, s: scaled_sine(x, s), (X, 2.0), id=ID), torch.no_grad():
        record = assert_fires(lambda x: x.sin() * 3.0, (X,), 1, inner="aot_eager")
        assert "scaled_sine" in " ".join(record.rewritten[0].added)


def test_tensors_made_by_the_functions() -> None:
    def find(x: Tensor) -> Tensor:
        mask = torch.ones((x.shape[-2], x.shape[-1]), dtype=torch.bool).tril()
        return x.masked_fill(~mask, -1.0).exp()

    def replacement(x: Tensor) -> Tensor:
        mask = torch.ones((x.shape[-2], x.shape[-1]), dtype=torch.bool).tril()
        return torch.where(mask, x.exp(), torch.exp(torch.tensor(-1.0)))

    def model(x: Tensor, diagonal: int) -> Tensor:
        mask = torch.ones(5, 5, dtype=torch.bool)
        return x.masked_fill(~torch.tril(mask, diagonal=diagonal), -1.0).exp()

    x = torch.randn(2, 5, 5)
    with register_pattern(find, replacement, (X,), id=ID):
        assert_fires(lambda x: model(x, 0), (x,), 1, inner="aot_eager")
        (reason,) = reasons(lambda x: model(x, 1), (x,))
        assert reason == "`diagonal` of `tril` is 1 instead of 0"


def test_random_operators() -> None:
    def find(x: Tensor, p: float) -> Tensor:
        return F.dropout(x.exp(), p, True).sin()

    def replacement(x: Tensor, p: float) -> Tensor:
        return torch.sin(F.dropout(torch.exp(x), p))

    with register_pattern(find, replacement, (X, 0.5), id=ID):
        _, record = compiled(lambda x: F.dropout(x.exp(), 0.25).sin(), (X,))
        assert record.rewritten[0].facts["p"] == "0.25"

        def model(x: Tensor) -> Tensor:
            y = F.dropout(x.exp(), 0.25)
            z = torch.rand_like(x)
            return y.sin() + z

        _, record = compiled(model, (X,))
        assert [m.reason for m in record.near_misses] == [
            "another random operator stands within the region"
        ]


def test_work_is_bounded() -> None:
    """Sums whose terms all look alike have 2^n readings; none may be tried for long."""

    def find(x: Tensor, y: Tensor) -> Tensor:
        out = x.sin()
        for _ in range(12):
            out = (out + y.cos()) * (y.cos() + out.sin())
        return out.exp()

    def model(x: Tensor, y: Tensor) -> Tensor:
        out = x.cos()
        for _ in range(12):
            out = (y.cos() + out) * (out.sin() + y.cos())
        return out.exp()

    with register_pattern(find, lambda x, y: find(x, y), (X, X), id=ID):
        start = time.perf_counter()
        _, record = compiled(model, (X, X + 1))
        assert not record.rewritten
        assert time.perf_counter() - start < 20
        assert record.seconds < 3


LINEAR = torch.nn.Linear(4, 4)
STRAIGHT_LINE = r"\. Write it as straight-line PyTorch .*item\(\) .* where=, .* a case instead\)\.$"
WEIGHTS = r"\. Pass weights and modules' parameters as arguments; call F\.linear, not a module\.$"
NOT_TRACEABLE: dict[str, tuple[Callable[..., Any], str]] = {
    "control flow": (lambda x: x if x.sum() > 0 else -x, STRAIGHT_LINE),
    "loop over a shape": (lambda x: sum(x[i] for i in range(x.shape[0])), STRAIGHT_LINE),
    "loop over a tensor": (lambda x: sum(row for row in x), STRAIGHT_LINE),
    "float": (lambda x: x * float(x.sum()), STRAIGHT_LINE),
    "len": (lambda x: x * len(x), STRAIGHT_LINE),
    "item": (lambda x: x if x.mean().item() > 0 else -x, STRAIGHT_LINE),
    "array": (lambda x: torch.from_numpy(x.numpy()), STRAIGHT_LINE),
    "module": (lambda x: torch.nn.Linear(4, 4)(x), WEIGHTS),
    "module from elsewhere": (lambda x: LINEAR(x), WEIGHTS),
    "bound method of a module": (LINEAR.forward, WEIGHTS),
    "parameter": (lambda x: x @ LINEAR.weight, WEIGHTS),
    "unknown name": (
        lambda x: x * unknown,  # type: ignore[name-defined]  # noqa: F821
        r"NameError: name 'unknown' is not defined\.$",
    ),
    "its own error": (lambda x: x * (1 / 0), r"ZeroDivisionError: division by zero\.$"),
    "missing argument": (
        lambda x: torch.softmax(x, -1) + scores(x),  # type: ignore[call-arg]
        r"TypeError: scores\(\) missing 2 required positional arguments: 'w' and 's'\.$",
    ),
}


@pytest.mark.parametrize("name", NOT_TRACEABLE)
@pytest.mark.parametrize("role", ["find", "replace"])
def test_functions_that_cannot_be_traced(name: str, role: str) -> None:
    function, text = NOT_TRACEABLE[name]
    functions = {"find": lambda x: x.exp(), "replace": lambda x: x.exp(), role: function}
    with pytest.raises(UntraceablePatternError, match=f"`{role}` could not be traced: .*{text}"):
        register_pattern(functions["find"], functions["replace"], (X,), id=ID)


def test_bound_methods() -> None:
    class Scaled:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def find(self, x: Tensor, y: Tensor) -> Tensor:
            return x.exp() * self.scale - y

        def fused(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.exp(x) * self.scale - y

    scaled = Scaled(2.0)
    with register_pattern(scaled.find, scaled.fused, (X, X), id=ID):
        assert_fires(lambda x, y: torch.exp(x) * 2.0 - y, (X, X + 1), 1)
        assert_fires(lambda x, y: torch.exp(x) * 3.0 - y, (X, X + 1), 0)


def test_what_has_no_example_stands_for_its_default() -> None:
    def find(x: Tensor, w: Tensor, eps: float = 1e-6, square: bool = True) -> Tensor:
        y = x.pow(2) if square else x
        return x * torch.rsqrt(y.mean(-1, keepdim=True) + eps) * w

    def replacement(x: Tensor, w: Tensor, epsilon: float = 1e-6) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), w, epsilon)

    inputs = (X, X[0])
    with register_pattern(find, replacement, inputs, id=ID):
        record = assert_fires(lambda x, w: find(x, w), inputs, 1)
        assert set(record.rewritten[0].facts) == {"x", "w"}
        (reason,) = reasons(lambda x, w: find(x, w, 1e-3), inputs)
        assert reason == "`other` of `add` is 0.001 instead of 1e-06"
    with register_pattern(find, lambda a, b: F.rms_norm(a, (4,), b, 1e-6), inputs, id=ID):
        assert_fires(lambda x, w: find(x, w), inputs, 1)
    with register_pattern(find, replacement, (*inputs, 1e-5), id=ID):
        record = assert_fires(lambda x, w: find(x, w, 1e-3), inputs, 1)
        assert record.rewritten[0].facts["eps"] == "0.001"


def test_arguments_are_bound_by_position() -> None:
    def find(x: Tensor, y: Tensor) -> Tensor:
        return x.exp() * y

    with pytest.raises(PatternError, match="`y` is argument 2 of `find` but argument 1 of `rep"):
        register_pattern(find, lambda y, x: x.exp() * y, (X, X), id=ID)
    with pytest.raises(PatternError, match=r"`y` is argument 2 .* bound by position"):
        register_pattern(find, lambda y, z: z.exp() * y, (X, X), id=ID)
    with register_pattern(find, lambda a, b: torch.exp(a) * b, (X, X), id=ID):
        assert_fires(find, (X, X + 1), 1)


@torch.library.custom_op("fuser_test::scale_all_", mutates_args={"xs"})
def scale_all_(xs: list[Tensor], scale: float) -> None:
    for x in xs:
        x.mul_(scale)


def write_to_a_list(x: Tensor) -> Tensor:
    y = x.exp()
    scale_all_([x], 2.0)
    return y


def write_last(x: Tensor) -> Tensor:
    y = x.exp()
    x.add_(1)
    return y


def write_to_out(x: Tensor) -> Tensor:
    y = x.exp()
    torch.add(x, 1, out=x)
    return y


@pytest.mark.parametrize("write", [write_to_a_list, write_last, write_to_out])
@pytest.mark.parametrize("role", ["find", "replace"])
def test_writes_are_refused_also_where_nobody_reads_the_result(
    write: Callable[..., Any], role: str
) -> None:
    functions = {"find": lambda x: x.exp(), "replace": lambda x: x.exp(), role: write}
    with pytest.raises(PatternError, match=f"`{role}` writes to a tensor in place"):
        register_pattern(functions["find"], functions["replace"], (X,), id=ID)


BAD: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any, type[Exception], str]] = {
    "fails on the examples": (
        lambda x: x @ x,
        lambda x: x @ x,
        (X,),
        UnrunnablePatternError,
        r"fails on the example inputs, at .*[^.]\. Give examples",
    ),
    "depends on content": (
        lambda x: x * x.sum().item(),
        lambda x: x,
        (X,),
        UnrunnablePatternError,
        "content",
    ),
    "another shape": (
        lambda x: x.exp(),
        lambda x: x.exp().mT,
        (X,),
        PatternOutputsError,
        r"the shape of output 0 .*\(3, 4\).*\(4, 3\)",
    ),
    "another dtype": (
        lambda x: x.exp(),
        lambda x: x.exp().half(),
        (X,),
        PatternOutputsError,
        "the dtype of output 0",
    ),
    "another number of outputs": (
        lambda x: x.exp(),
        lambda x: (x.exp(), x),
        (X,),
        PatternOutputsError,
        "the number of outputs",
    ),
    "too few examples": (
        lambda x, y: x + y,
        lambda x, y: x + y,
        (X,),
        PatternError,
        "give one for",
    ),
    "examples that are no tuple": (lambda x: x.exp(), lambda x: x.exp(), X, PatternError, "tuple"),
    "default in between": (
        lambda x, y=1.0, z=2.0: x * y + z,
        lambda x, y, z: x * y + z,
        (X,),
        PatternError,
        "same arguments: x",
    ),
    "other arguments": (lambda x: x + 1, lambda x, y: x + y, (X,), PatternError, "same arguments"),
    "variable arguments": (lambda *x: x[0], lambda *x: x[0], (X,), PatternError, "positional"),
    "no tensor": (lambda x: x.shape[0], lambda x: x, (X,), PatternError, "must return a tensor"),
    "its own argument": (lambda x: x, lambda x: x, (X,), PatternError, "must compute each"),
    "unused argument": (lambda x, y: x + 1, lambda x, y: x, (X, X), PatternError, "argument `y`"),
    "shape only": (
        lambda x, y: x * y.shape[0],
        lambda x, y: x,
        (X, X),
        PatternError,
        "argument `y` directly",
    ),
    "in place": (lambda x: x.exp_(), lambda x: x.exp(), (X,), PatternError, "in place"),
    "a tensor from elsewhere": (
        lambda x: x * W[0],
        lambda x: x,
        (X,),
        PatternError,
        "`find` holds a tensor from elsewhere",
    ),
    "unconnected outputs": (
        lambda x, y: (x.exp(), y.exp()),
        lambda x, y: (x.exp(), y.exp()),
        (X, X),
        PatternError,
        "share no tensor",
    ),
    "a module": (torch.nn.ReLU(), lambda x: x, (X,), PatternError, "must be a Python function"),
    "a builtin": (torch.relu, lambda x: x, (X,), PatternError, "wrap it in a def"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_patterns_are_refused_when_registered(name: str) -> None:
    find, replacement, examples, error, text = BAD[name]
    with pytest.raises(error, match=text):
        register_pattern(find, replacement, examples, id=ID)


def test_where_that_asks_for_unknown_arguments() -> None:
    with pytest.raises(PatternError, match="`where` takes 'y', which is not an argument"):
        register_pattern(scores, scores_fused, EXAMPLES, id=ID, where=lambda y: None)


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w, b).sin().abs()


def product(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x @ w.mT + b).sin().abs()


APART: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "keepdim": (
        lambda x: (x / x.exp().mean(-1, keepdim=True)).sin(),
        lambda x: (x / x.exp().mean(-1)[:, None]).sin(),
        (X,),
    ),
    "linear": (linear, product, (X, W, W[:, 0])),
    "addmm": (
        product,
        lambda x, w, b: torch.addmm(b, x, w.mT).sin().abs(),
        (X, W, W[:, 0]),
    ),
    "linear without a bias": (
        lambda x, w: F.linear(x, w).sin().abs(),
        lambda x, w: (x @ w.mT).sin().abs(),
        (X, W),
    ),
    "chunk and split": (
        lambda x: x.chunk(2, -1)[0].exp() * x.chunk(2, -1)[1],
        lambda x: x.split(2, -1)[0].exp() * x.split(2, -1)[1],
        (X,),
    ),
    "chunk and slices": (
        lambda x: x.chunk(2, -1)[0].exp() * x.chunk(2, -1)[1],
        lambda x: x[..., :2].exp() * x[..., 2:],
        (X,),
    ),
    "select": (lambda x: x[:, 0].exp().sin(), lambda x: x.select(1, 0).exp().sin(), (X,)),
    "rsqrt": (lambda x: x.exp().rsqrt().sin(), lambda x: (1 / x.exp().sqrt()).sin(), (X,)),
    "where of the negated mask": (
        lambda x, w: x.masked_fill(w > 0, -1.0).sin(),
        lambda x, w: torch.where(~(w > 0), x, -1.0).sin(),
        (X, X + 1),
    ),
    "a composite": (lambda x: F.silu(x).exp(), lambda x: (x * x.sigmoid()).exp(), (X,)),
}


@pytest.mark.parametrize("name", APART)
def test_what_the_documentation_says_is_not_read_as_one(name: str) -> None:
    one, other, inputs = APART[name]
    for find, model in ((one, other), (other, one)):
        if name == "linear without a bias" and find is other:
            continue
        with register_pattern(find, find, inputs, id=ID):
            assert_fires(find, inputs, 1)
            assert_fires(model, inputs, 0)


IMAGE, KERNEL = drawn(2, 3, 6, 7), drawn(4, 3, 3, 3)
BYTES = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
AS_ONE: dict[str, tuple[Any, tuple[Any, ...], Any, Any]] = {
    "a linear as the whole of a product": (
        lambda x, w: x @ w.transpose(-2, -1),
        (X, W),
        lambda x, w: F.linear(x, w),
        lambda x, w: F.linear(x, w, w[:, 0]),
    ),
    "shifts": (
        lambda x: torch.stack((x & 3, x >> 2), -1),
        (BYTES,),
        lambda x: torch.stack((torch.bitwise_and(x, 3), torch.bitwise_right_shift(x, 2)), -1),
        lambda x: torch.stack((x & 3, x << 2), -1),
    ),
    "a number for each dimension": (
        lambda x, w: F.conv2d(x, w, padding=1).sin(),
        (IMAGE, KERNEL),
        lambda x, w: torch.conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1).sin(),
        lambda x, w: F.conv2d(x, w, padding=(1, 0)).sin(),
    ),
    "an argument for each dimension": (
        lambda x, w, n: F.conv2d(x, w, padding=n).sin(),
        (IMAGE, KERNEL, 3),
        lambda x, w, n: F.conv2d(x, w, padding=(2, 2), stride=[1, 1]).sin(),
        lambda x, w, n: F.conv2d(x, w, padding=(2, 1)).sin(),
    ),
}
"""A pattern, its examples, a model in which it is found, and one in which it is not."""


@pytest.mark.parametrize("name", AS_ONE)
def test_what_is_read_as_one(name: str) -> None:
    find, inputs, model, other = AS_ONE[name]
    with register_pattern(find, find, inputs, id=ID):
        assert_fires(model, inputs, 1)
        assert_fires(other, inputs, 0)


@pytest.mark.parametrize("number", [3.0, 7, 48.0, 49.0, 98, 103.0])
def test_reciprocals_of_literals(number: float) -> None:
    """1 / (1 / 49) is not 49."""
    inverse = 1 / number

    def divided(x: Tensor) -> Tensor:
        return (x / number).tanh().abs()

    def scaled(x: Tensor) -> Tensor:
        return (x * inverse).tanh().abs()

    for find, model in ((divided, scaled), (scaled, divided)):
        with register_pattern(find, find, (X,), id=ID):
            assert_fires(model, (X,), 1)
    with register_pattern(divided, divided, (X,), id=ID):
        assert_fires(lambda x: (x * (inverse * (1 + 1e-12))).tanh().abs(), (X,), 0)


@pytest.mark.parametrize("number", [0, 0.0, math.inf, -math.inf, math.nan, 1e-45, 1e-310])
def test_numbers_without_a_reciprocal(number: float) -> None:
    def scaled(x: Tensor, s: float) -> Tensor:
        return (x * s).tanh().abs()

    def divided(x: Tensor, s: float) -> Tensor:
        return (x / s).tanh().abs()

    for find, model in ((scaled, divided), (divided, scaled)):
        with register_pattern(find, find, (X, 2.0), id=ID):
            _, record = compiled(lambda x, f=model: f(x, number), (X,))
            assert not record.rewritten
            (missed,) = record.near_misses
            assert "is not for certain a" in missed.reason


BAD_WHERE: dict[str, tuple[Any, str]] = {
    "a builtin": (max, "`where` must be a Python function, not <built-in function max>"),
    "by position": (lambda x, /: None, "`where` is called by name, but takes `x` by position only"),
    "a number": (3, "`where` must be a function"),
    "any": (lambda *xs: None, "`where` takes 'xs', which is not an argument of `find`"),
}


@pytest.mark.parametrize("name", BAD_WHERE)
def test_where_that_cannot_be_called_by_name(name: str) -> None:
    where, text = BAD_WHERE[name]
    with pytest.raises(PatternError, match=text):
        register_pattern(scores, scores_fused, EXAMPLES, id=ID, where=where)


NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda x: x.max(-1).values * 2,
    "topk": lambda x: x.topk(2, -1).values.exp(),
    "sort": lambda x: torch.sort(x, -1).indices * 2,
    "max_pool1d": lambda x: F.max_pool1d(x[None], 2) * 2,
    "max_pool2d": lambda x: F.max_pool2d(x[None], kernel_size=2) * 2,
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x[None], 2) * 2,
}


@pytest.mark.parametrize("name", NAMED)
def test_named_results_and_poolings_match_themselves(name: str) -> None:
    find = NAMED[name]
    with register_pattern(find, lambda x: 1 * find(x), (X,), id=ID):
        assert_fires(find, (X,), 1)


@torch.library.custom_op("fuser_functions::linear", mutates_args=())
def rounded(x: Tensor) -> Tensor:
    return x.round()


rounded.register_fake(torch.empty_like)
JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "fake_quantize_per_tensor_affine": lambda y: torch.fake_quantize_per_tensor_affine(
        y, 0.01, 0, -128, 127
    ),
    "fake_quantize_per_channel_affine": lambda y: torch.fake_quantize_per_channel_affine(
        y, torch.ones(3), torch.zeros(3), 0, -128, 127
    ),
    "bfloat16": lambda y: y.bfloat16(),
    "a named dtype": lambda y: y.to(torch.float16),
    "float8": lambda y: y.to(torch.float8_e4m3fn).float(),
    "an operator of one's own": lambda y: torch.ops.fuser_functions.linear(y),
    "what is not known": lambda y: torch.special.bessel_j0(y),
}


@pytest.mark.parametrize("name", JUMPS)
def test_what_is_not_known_to_be_continuous_has_steps(name: str) -> None:
    step = JUMPS[name]
    with register_pattern(lambda x: step(x / 3.0) * 1, lambda x: step(x / 3) * 1, (X,), id=ID):
        assert_fires(lambda x: step(x / 3.0) * 1, (X,), 1)
        reasons(lambda x: step(x * (1 / 3.0)) * 1, (X,))


def test_a_cast_back_to_the_dtype_of_an_argument_has_no_steps() -> None:
    def find(x: Tensor) -> Tensor:
        return (x.float() / 3.0).softmax(-1).to(x.dtype)

    half = X.bfloat16()
    with register_pattern(find, lambda x: find(x), (half,), id=ID):
        assert_fires(lambda x: (x.float() * (1 / 3.0)).softmax(-1).to(x.dtype), (half,), 1)


def mean_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    return x - x.mean(-1, keepdim=True), x.mean(-1, keepdim=True)


def mean_once(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    return x - mean, mean


def gate_twice(x: Tensor) -> Tensor:
    return (x * 2).sigmoid() * x + (x + x.new_zeros(4)).exp() * (x * 2).sigmoid()


def gate_once(x: Tensor) -> Tensor:
    gate = (x * 2).sigmoid()
    return gate * x + (x + x.new_zeros(4)).exp() * gate


@pytest.mark.parametrize(("twice", "once"), [(mean_twice, mean_once), (gate_twice, gate_once)])
def test_what_is_computed_twice_is_found_shared_and_the_reverse(
    twice: Callable[..., Any], once: Callable[..., Any]
) -> None:
    for find in (twice, once):
        with register_pattern(find, lambda x: once(x), (X,), id=ID):
            assert_fires(twice, (X,), 1)
            assert_fires(once, (X,), 1)


def test_what_is_computed_twice_of_two_things_is_not_shared() -> None:
    find = lambda x: (lambda s: s * x + s)(x.sigmoid())  # noqa: E731
    with register_pattern(find, lambda x: find(x), (X,), id=ID):
        (reason,) = reasons(lambda x, y: x.sigmoid() * x + y.sigmoid(), (X, X + 1))
        assert "stands for two different values" in reason
    drops = lambda x: (lambda s: s * x + s)(F.dropout(x, 0.5))  # noqa: E731
    with register_pattern(drops, lambda x: drops(x), (X,), id=ID):
        _, record = compiled(lambda x: F.dropout(x, 0.5) * x + F.dropout(x, 0.5), (X,))
        assert not record.rewritten


@pytest.mark.parametrize(
    "equation", ["bij,jk->bik", "...ij,jk->...ik", "jk,bij->bik", "abij,jk->abik", "bij,bjk->bik"]
)
def test_an_einsum_that_is_a_matmul(equation: str) -> None:
    find = lambda x, w: (x @ w).exp()  # noqa: E731
    sizes = {"a": 5, "b": 2, "i": 3, "j": 4, "k": 6}
    terms = equation.replace("...", "b").partition("->")[0].split(",")
    inputs = [drawn(*(sizes[letter] for letter in term)) for term in terms]
    with register_pattern(find, lambda x, w: torch.exp(x @ w), (X, W.mT), id=ID):
        assert_fires(lambda *xs: torch.einsum(equation, *xs).exp(), inputs, 1)


@pytest.mark.parametrize("equation", ["bij,bkjl->bikl", "ij,jk->i", "abj,cdj->abcd"])
def test_an_einsum_that_is_no_matmul(equation: str) -> None:
    find = lambda x, w: (x @ w).exp()  # noqa: E731
    inputs = [torch.ones(*[2] * len(term)) for term in equation.partition("->")[0].split(",")]
    with register_pattern(find, lambda x, w: torch.exp(x @ w), (X, W.mT), id=ID):
        assert_fires(lambda *xs: torch.einsum(equation, *xs).exp(), inputs, 0)


@pytest.mark.parametrize(
    "where",
    [
        lambda x: None if len(x.nonzero()) else "empty",
        lambda x: None if x.sum().item() > 0 else "negative",
        lambda x: None if x.sum() > 0 else "negative",
    ],
)
def test_where_that_looks_at_values_costs_one_warning(where: Callable[..., Any]) -> None:
    model = lambda x: (x * 3.0).tanh()  # noqa: E731
    with register_pattern(model, lambda x: torch.tanh(x * 3.0), (X,), id=ID, where=where):
        with pytest.warns(FuserWarning, match="`where` looks at the values of a tensor"):
            out, record = compiled(model, (X,), strict=False, inner="aot_eager", fullgraph=True)
    assert not record.rewritten
    torch.testing.assert_close(out, model(X))


def test_sizes_of_data_that_where_does_not_use_leave_nothing_behind() -> None:
    model = lambda x: (x * 3.0).tanh()  # noqa: E731
    where = lambda x: None if x.nonzero() is not None else "no"  # noqa: E731
    with register_pattern(model, lambda x: torch.tanh(x * 3.0), (X,), id=ID, where=where):
        assert_fires(model, (X,), 1, inner="aot_eager", fullgraph=True)


def test_a_replacement_that_broadcasts_symbolic_sizes() -> None:
    def find(x: Tensor, c: Tensor, s: Tensor) -> Tensor:
        return x * c + x.sin() * s

    inputs = (drawn(4, 3, 8), drawn(1, 3, 8), drawn(1, 3, 8))
    fused = lambda x, c, s: torch.addcmul(x * c, x.sin(), s)  # noqa: E731
    with register_pattern(find, fused, inputs, id=ID):
        assert_fires(find, inputs, 1, dynamic=True, inner="aot_eager")


@torch.library.custom_op("fuser_functions::forward_only", mutates_args=())
def forward_only(x: Tensor) -> Tensor:
    return torch.tanh(x) * 2


forward_only.register_fake(torch.empty_like)
FRAGMENT = torch.library.Library("fuser_functions", "FRAGMENT")
FRAGMENT.define("bare(Tensor x) -> Tensor")
FRAGMENT.impl("bare", lambda x: torch.tanh(x) * 2, "CPU")
FRAGMENT.impl("bare", torch.empty_like, "Meta")


@pytest.mark.parametrize("name", ["forward_only", "bare"])
def test_an_operator_without_an_autograd_formula_is_for_inference(name: str) -> None:
    find = lambda x: x.tanh() * 2  # noqa: E731
    operator = getattr(torch.ops.fuser_functions, name)
    with register_pattern(find, lambda x: operator(x), (X,), id=ID):
        assert_fires(find, (X,), 1)
        x = X.clone().requires_grad_()
        with torch.no_grad():
            assert_fires(find, (x,), 1)
        (reason,) = reasons(find, (x,), inner="aot_eager")
        assert "has no autograd formula, and gradients are wanted" in reason
        out, _ = compiled(find, (x,), inner="aot_eager")
        out.sum().backward()
        assert x.grad is not None
    with register_pattern(find, lambda x: x.tanh() + operator(x.detach()) / 2, (X,), id=ID):
        assert_fires(find, (x,), 1, inner="aot_eager")


def test_defaults_must_be_the_same() -> None:
    def find(x: Tensor, eps: float = 1e-6) -> Tensor:
        return (x + eps).sqrt()

    def other(x: Tensor, eps: float = 1e-5) -> Tensor:
        return torch.sqrt(x + eps)

    with pytest.raises(PatternError, match=r"`eps` has the default 1e-06 in `find` but 1e-05 in"):
        register_pattern(find, other, (X,), id=ID)
    register_pattern(find, other, (X, 1e-6), id=ID).unregister()


def test_a_class_that_cannot_be_made() -> None:
    class Abstract(Pattern):
        id = "mine.abstract"

    class Raises(Pattern):
        id = "mine.raises"

        def __init__(self) -> None:
            raise ValueError("no configuration")

        def anchors(self, view: GraphView) -> Iterable[Node]:
            return ()

        def match(self, view: GraphView, anchor: Node) -> None:
            return None

    with pytest.raises(PatternError, match=r"Abstract cannot be registered, .* TypeError: .*abstr"):
        register_pattern(Abstract)
    with pytest.raises(PatternError, match=r"Raises cannot be registered, .* no configuration"):
        register_pattern(Raises)


def test_an_id_may_have_no_dot() -> None:
    register_pattern(lambda x: x.exp() * 2, lambda x: 2 * x.exp(), (X,), id="mine").unregister()
    with pytest.raises(PatternError, match="letters, digits and underscores"):
        register_pattern(lambda x: x.exp() * 2, lambda x: 2 * x.exp(), (X,), id="my-own")
