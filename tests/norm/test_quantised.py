"""Quantisations after a norm, in inference: one region, with scales as near to fp64 as eager's and
integers that differ by one at the most, where two roundings meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import crossed, some
from tests.norm.forms import FEATURES, ROWS, Form
from tests.norm.forms_quantised import FORMS, GROUPS, OTHERS
from tests.norm.test_norm import DTYPES, inputs
from tests.norm.test_results import NAMES, region

LOWERINGS = ["reference", "triton"]


def like(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(t.detach() for t in inputs(ROWS[0], dtype))


def check(ours: Run, eager: Run, exact: Run) -> None:
    """Integers apart from the rest."""
    apart = [i for i, t in enumerate(eager.outputs) if not t.is_floating_point()]
    for i in apart:
        a, b = ours.outputs[i], eager.outputs[i]
        assert a.dtype == b.dtype
        differ = (a.int() - b.int()).abs()
        assert int(differ.max()) <= 1
        assert float(differ.float().mean()) < 0.01
    runs = [[t for i, t in enumerate(r.outputs) if i not in apart] for r in (ours, eager, exact)]
    assert_near(*(Run(outputs) for outputs in runs))


@pytest.mark.parametrize(
    ("form", "dtype", "lowering"), crossed([*FORMS, *GROUPS], DTYPES, LOWERINGS), **NAMES
)
def test_quantisations(form: Form, dtype: torch.dtype, lowering: str) -> None:
    ours = compiled(form, like(dtype), **{"fuser.lowering": lowering})
    found = region(ours)
    assert "abs" in found.facts["largest"]
    assert ("of" in found.facts) is (form in GROUPS)
    assert "to(" in found.facts["after"]
    check(ours, run(form, like(dtype)), run(form, wide(like(dtype))))


@pytest.mark.parametrize("dynamic", [0, 1])
@pytest.mark.parametrize("form", [FORMS[0], *some(GROUPS, 2)], **NAMES)
def test_any_size(form: Form, dynamic: int) -> None:
    x, w, b = like(torch.float32)
    torch._dynamo.maybe_mark_dynamic(x, dynamic)
    ours = compiled(form, (x, w, b))
    assert "largest" in region(ours).facts
    check(ours, run(form, (x, w, b)), run(form, wide((x, w, b))))


@pytest.mark.parametrize(("form", "dtype"), crossed(OTHERS, DTYPES), **NAMES)
def test_what_is_not_by_row(form: Form, dtype: torch.dtype) -> None:
    """A largest value that something else is done with may be a result by itself."""
    ours = compiled(form, like(dtype))
    found = region(ours)
    assert "largest" not in found.facts or "round" not in found.facts["after"]
    check(ours, run(form, like(dtype)), run(form, wide(like(dtype))))


def of_two_dimensions(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Groups of two by four elements, between which a factor varies."""
    h = F.rms_norm(x, (FEATURES,), w).unflatten(-1, (2, 2, 4)) * b[:2, None]
    scale = h.abs().amax((-2, -1), keepdim=True).clamp(min=1e-5) / 127
    return (h / scale).round().to(torch.int8), scale


def test_groups_of_several_dimensions_have_no_kernel() -> None:
    args = like(torch.float32)
    ours = compiled(of_two_dimensions, args)
    assert region(ours).facts["of"] == "each group"
    check(ours, run(of_two_dimensions, args), run(of_two_dimensions, wide(args)))
    left = compiled(of_two_dimensions, args, **{"fuser.lowering": "triton"})
    assert left.rewrites("norm") == 0
    assert "the elements of its groups have several dimensions" in left.reasons()


def test_in_training_the_norm_alone_is_a_region() -> None:
    args = inputs(ROWS[0], torch.float32)
    ours = compiled(FORMS[0], args, grad=True)
    found = region(ours)
    assert "largest" not in found.facts
    assert found.facts["stops"] == "no gradient goes through what is rounded, and one is wanted"
    check(ours, run(FORMS[0], args, grad=True), run(FORMS[0], wide(args), grad=True))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("number", [torch.nan, torch.inf, 0.0])
@pytest.mark.parametrize("form", [FORMS[0], GROUPS[0]], **NAMES)
def test_special_numbers(form: Form, number: float, lowering: str) -> None:
    """A row of them has a scale of them; others are as they were."""
    x, w, b = like(torch.float32)
    x[0, 0] = number
    options: dict[str, Any] = {"fuser.lowering": lowering}
    ours, eager = compiled(form, (x, w, b), **options), run(form, (x, w, b))
    torch.testing.assert_close(ours.outputs[1], eager.outputs[1], equal_nan=True)
    assert int((ours.outputs[0][1:].int() - eager.outputs[0][1:].int()).abs().max()) <= 1
