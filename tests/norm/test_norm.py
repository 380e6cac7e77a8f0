"""Every form is found, and is as near to fp64 as eager is; look-alikes are left with a reason."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import assert_near, compiled, run, wide
from tests.every import crossed
from tests.norm import forms
from tests.norm.forms import CHANNELS, FEATURES, IMAGES, ROWS, Form, by_the_norm, unit_vectors
from tests.norm.lookalikes import LOOKALIKES, WIDE, WRITING

FORMS = [*ROWS, *IMAGES]
DTYPES = [torch.float32, torch.bfloat16]
BY = ["reference", "auto"]


def inputs(
    form: Form, dtype: torch.dtype, *, last: bool = False, images: bool = False
) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    if images or form in IMAGES:
        x, size = torch.randn(2, CHANNELS, 3, 5), CHANNELS
        x = x.contiguous(memory_format=torch.channels_last) if last else x
    else:
        x, size = torch.randn(2, FEATURES + 1, FEATURES), FEATURES
    parameters = (torch.randn(size), torch.randn(size))
    return tuple(t.to(dtype).requires_grad_() for t in (x, *parameters))


def check(form: Form, args: tuple[Tensor, ...], count: int = 1, **options: Any) -> None:
    ours = compiled(form, args, grad=True, **options)
    assert ours.rewrites("norm") == count, ours.reasons()
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


@pytest.mark.parametrize(
    ("form", "dtype", "lowering"),
    crossed(FORMS, DTYPES, BY),
    ids=lambda f: getattr(f, "__name__", str(f)),
)
def test_forms(form: Form, dtype: torch.dtype, lowering: str) -> None:
    check(form, inputs(form, dtype), **{"fuser.lowering": lowering})


@pytest.mark.parametrize("lowering", BY)
@pytest.mark.parametrize("form", IMAGES, ids=lambda f: f.__name__)
def test_channels_last(form: Form, lowering: str) -> None:
    args = inputs(form, torch.float32, last=True)
    found = compiled(form, args, **{"fuser.lowering": lowering}).outputs
    strides = [y.stride() for y in run(form, args).outputs]
    assert [y.stride() for y in found] == strides
    check(form, args, **{"fuser.lowering": lowering})


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_inference_of_any_size(form: Form) -> None:
    x, w, b = (t.detach() for t in inputs(form, torch.float32))
    for dim in (0, 2, 3) if form in IMAGES else (0, 1):
        torch._dynamo.maybe_mark_dynamic(x, dim)
    found = compiled(form, (x, w, b))
    assert found.rewrites("norm") == 1, found.reasons()
    assert_near(found, run(form, (x, w, b)), run(form, wide((x, w, b))))


@pytest.mark.parametrize("square", [False, True])
def test_sizes_computed_of_others(square: bool) -> None:
    """A decoder's: twice the half of what is given, in both directions."""

    def form(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        h = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0)
        return F.silu(F.group_norm(h, 2, w, b))

    x, w, b = (t.detach() for t in inputs(IMAGES[0], torch.float32))
    x = torch.randn(2, CHANNELS, 7, 7) if square else x
    for dim in (2, 3):
        torch._dynamo.mark_dynamic(x, dim)
    found = compiled(form, (x, w, b), **{"fuser.lowering": "aten"})
    assert found.rewrites("norm") == 1, found.reasons()
    assert_near(found, run(form, (x, w, b)), run(form, wide((x, w, b))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("form", "reason"), LOOKALIKES, ids=lambda f: getattr(f, "__name__", ""))
def test_lookalikes(form: Form, reason: str, dtype: torch.dtype) -> None:
    args, grad = inputs(form, dtype), form not in WRITING
    found = compiled(form, args, grad=grad)
    assert found.rewrites("norm") == 0
    assert reason in found.reasons()
    assert bool(reason) == bool(found.record.near_misses)
    eager = run(form, args, grad=grad)
    assert_near(found, eager, eager if form in WIDE else run(form, wide(args), grad=grad))


@pytest.mark.parametrize(
    ("special", "form", "lowering"),
    [
        (*case, lowering)
        for case, lowering in crossed(
            itertools.product(
                (torch.nan, torch.inf, -torch.inf, 1e4, 0.0),
                (*FORMS[::4], unit_vectors, by_the_norm),
            ),
            BY,
        )
    ],
    ids=lambda f: getattr(f, "__name__", str(f)),
)
def test_special_numbers(form: Form, special: float, lowering: str) -> None:
    """A number in one row; an offset, or nothing but zeros, in all of them."""
    x, w, b = inputs(form, torch.float32)
    with torch.no_grad():
        if special == 1e4:
            x += special
        elif special == 0:
            x *= 0
        else:
            x[0, 0, 0] = special
    if special == 0 and form.__name__ == "by_the_deviation":
        return
    check(form, (x, w, b), **{"fuser.lowering": lowering})


@pytest.mark.parametrize("lowering", BY)
@pytest.mark.parametrize("scale", [1e16, 1e-13])
def test_deviations_far_from_one(scale: float, lowering: str) -> None:
    """The third power of one is no number in fp32."""

    def form(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-30)

    x = (scale * torch.randn(3, 1, FEATURES)).requires_grad_()
    ours = compiled(form, (x,), grad=True, **{"fuser.lowering": lowering})
    exact = run(form, (wide(x),), grad=True)
    assert ours.rewrites("norm") == 1
    torch.testing.assert_close(ours.outputs[0].double(), exact.outputs[0], rtol=1e-5, atol=1e-6)
    own, other = ours.grads[0], exact.grads[0]
    assert own is not None
    assert other is not None
    torch.testing.assert_close(own.double() * scale, other * scale, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lowering", BY)
@pytest.mark.parametrize("shape", [(0, 3, FEATURES), (1, 1, FEATURES), (3, 1, FEATURES)], ids=str)
def test_few_rows(shape: tuple[int, ...], lowering: str) -> None:
    def form(x: Tensor, w: Tensor) -> Tensor:
        return F.layer_norm(x, (FEATURES,), w)

    args = (torch.randn(shape, requires_grad=True), torch.randn(FEATURES, requires_grad=True))
    check(form, args, **{"fuser.lowering": lowering})  # type: ignore[arg-type]


@pytest.mark.parametrize("lowering", BY)
def test_rows_of_one_element(lowering: str) -> None:
    def form(x: Tensor, w: Tensor) -> Tensor:
        return F.layer_norm(x, (1,), w)

    args = (torch.randn(4, 1, requires_grad=True), torch.randn(1, requires_grad=True))
    check(form, args, **{"fuser.lowering": lowering})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        (forms.after_a_reshaped_residual, "(c2 + c3)", "((n * c0) + c1)"),
        (forms.after_a_residual_in_float, "(c1 + (c2 * c3))", "(n * c0)"),
        (forms.rearranged_between, "c2", "(silu((((n * c0) + c1) * 0.3)) + 1)"),
        (forms.beside_its_transpose, "c1", "(n * c0)"),
        (forms.group_norm, "c2", "silu(((n * c0) + c1))"),
        (forms.embedding_before, "(c2 + c3)", "(((n * c0) + c1) * sigmoid(((n * c0) + c1)))"),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_neighbours_join(form: Form, before: str, after: str) -> None:
    (found,) = compiled(form, inputs(form, torch.float32), grad=True).record.rewritten
    assert found.facts["before"] == before
    assert found.facts["after"] == after


@pytest.mark.parametrize("lowering", BY)
def test_one_sum_between_two(lowering: str) -> None:
    """Gemma 2: the sum belongs to the norm before it, and the one after it gets along without."""

    def form(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + w)
        h = x.flip(-2) + h
        return h, h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + b)

    check(form, inputs(ROWS[0], torch.float32), 2, **{"fuser.lowering": lowering})


def test_autocast() -> None:
    def form(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.layer_norm(x @ x.mT @ x, (FEATURES,), w, b)

    args = inputs(ROWS[0], torch.float32)
    ours, eager = compiled(form, args, grad=True), run(form, args, grad=True)
    assert ours.rewrites("norm") == 1
    assert ours.outputs[0].dtype == eager.outputs[0].dtype
    assert_near(ours, eager, run(form, wide(args), grad=True))


def test_code_that_is_generated() -> None:
    """Through Inductor, which leaves the library's kernels closed."""
    torch.manual_seed(3)
    form = IMAGES[0]
    check(form, inputs(form, torch.float32, last=True), inner="inductor")
