"""Norms with several results: found as one region each, and as near to fp64 as eager is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.events import Rewritten
from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import crossed, some
from tests.norm.forms import FEATURES, Form
from tests.norm.forms_results import IMAGES, ROWS, STOPS
from tests.norm.test_norm import BY, DTYPES, inputs

FORMS = [*ROWS, *IMAGES]
LOWERINGS = [*BY, "triton"]


def name(case: Any) -> str | None:
    """Of a form, alone or with what is expected of it."""
    return getattr(case[0] if isinstance(case, tuple) else case, "__name__", None)


NAMES: dict[str, Any] = {"ids": name}


def region(ours: Run) -> Rewritten:
    """Of the norm: gates may have regions of their own."""
    (found,) = [r for r in ours.record.rewritten if r.pattern.startswith("norm.")]
    return found


def like(form: Form, dtype: torch.dtype) -> tuple[Tensor, ...]:
    of_images = form in [image for image, _ in IMAGES]
    return inputs(F.group_norm if of_images else F.layer_norm, dtype, images=of_images)


@pytest.mark.parametrize(("case", "dtype", "lowering"), crossed(FORMS, DTYPES, LOWERINGS), **NAMES)
def test_results(case: tuple[Form, str], dtype: torch.dtype, lowering: str) -> None:
    form, programs = case
    args = like(form, dtype)
    ours = compiled(form, args, grad=True, **{"fuser.lowering": lowering})
    assert ours.rewrites("norm") == 1, ours.reasons()
    if dtype is torch.float32:
        assert region(ours).facts["after"] == programs
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


@pytest.mark.parametrize("form", some([form for form, _ in FORMS], 2), **NAMES)
def test_inference_of_any_size(form: Form) -> None:
    x, w, b = (t.detach() for t in like(form, torch.float32))
    for dim in (0, 2, 3) if x.ndim == 4 else (0, 1):
        torch._dynamo.maybe_mark_dynamic(x, dim)
    found = compiled(form, (x, w, b))
    assert found.rewrites("norm") == 1, found.reasons()
    assert_near(found, run(form, (x, w, b)), run(form, wide((x, w, b))))


@pytest.mark.parametrize(("case", "dtype"), crossed(STOPS, DTYPES), **NAMES)
def test_where_it_stops(case: tuple[Form, str], dtype: torch.dtype) -> None:
    form, programs = case
    args = like(form, dtype)
    ours = compiled(form, args, grad=True)
    if dtype is torch.float32:
        assert region(ours).facts["after"] == programs
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


def test_a_result_that_nobody_differentiates() -> None:
    def form(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        h = F.layer_norm(x, (FEATURES,))
        return h * w, (h + w).detach()

    args = tuple(torch.randn(s, requires_grad=True) for s in ((3, FEATURES), (FEATURES,)))
    for lowering in LOWERINGS:
        ours = compiled(form, args, grad=True, **{"fuser.lowering": lowering})
        assert ours.rewrites("norm") == 1
        assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


def test_a_sum_without_a_gradient_keeps_none() -> None:
    """Frozen embeddings are added up, and their norm has a weight that is trained."""

    def embedded(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        h = a + b
        return h + h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * w

    a, b = torch.randn(2, 10, FEATURES), torch.randn(10, FEATURES)
    w = torch.randn(FEATURES, requires_grad=True)
    for lowering in ("reference", "triton"):
        ours = compiled(embedded, (a, b, w), grad=True, **{"fuser.lowering": lowering})
        assert ours.rewrites("norm") == 1, ours.reasons()
        eager = run(embedded, (a, b, w), grad=True)
        assert_near(ours, eager, run(embedded, wide((a, b, w)), grad=True))
