"""Quantisations of what is not normalised, in inference: a region with what is pointwise before."""

from __future__ import annotations

import pytest
import torch

from fuser.events import Rewritten
from tests.compiled import Run, compiled, run, wide
from tests.every import crossed, some
from tests.norm.forms import ROWS, Form
from tests.norm.forms_dynamic import (
    FORMS,
    LOOKALIKES,
    beside_another_reader,
    in_float64,
    swiglu,
)
from tests.norm.test_norm import DTYPES, inputs
from tests.norm.test_quantised import LOWERINGS, check, like
from tests.norm.test_results import NAMES


def region(ours: Run) -> Rewritten:
    """Of the quantisation; activations elsewhere have their own."""
    (found,) = [r for r in ours.record.rewritten if r.pattern == "quantise.dynamic"]
    return found


@pytest.mark.parametrize(("form", "dtype", "lowering"), crossed(FORMS, DTYPES, LOWERINGS), **NAMES)
def test_quantisations(form: Form, dtype: torch.dtype, lowering: str) -> None:
    ours = compiled(form, like(dtype), **{"fuser.lowering": lowering})
    assert "p" in region(ours).facts["after"], ours.reasons()
    check(ours, run(form, like(dtype)), run(form, wide(like(dtype))))


@pytest.mark.parametrize("dynamic", [0, 1])
@pytest.mark.parametrize("form", some(FORMS, 3), **NAMES)
def test_any_size(form: Form, dynamic: int) -> None:
    args = like(torch.float32)
    torch._dynamo.maybe_mark_dynamic(args[0], dynamic)
    ours = compiled(form, args)
    assert "p" in region(ours).facts["after"], ours.reasons()
    check(ours, run(form, args), run(form, wide(args)))


def test_what_is_pointwise_before_goes_along() -> None:
    found = region(compiled(swiglu, like(torch.float32)))
    assert found.facts["before"] == "(silu(c0) * c1)"
    assert found.facts["largest"] == "abs(n)"
    assert found.facts["statistics"] == "none"


def test_a_row_that_others_read_is_a_result() -> None:
    ours = compiled(beside_another_reader, like(torch.float32))
    assert region(ours).facts["before"] == "(silu(c0) * c1)"
    assert [r.pattern for r in ours.record.rewritten] == ["quantise.dynamic"]


@pytest.mark.parametrize(("case", "dtype"), crossed(LOOKALIKES, DTYPES), **NAMES)
def test_lookalikes(case: tuple[Form, str], dtype: torch.dtype) -> None:
    form, reason = case
    ours = compiled(form, like(dtype))
    assert ours.rewrites("quantise") == 0
    assert reason in ours.reasons()
    assert bool(reason) == bool(ours.record.near_misses)
    eager = run(form, like(dtype))
    check(ours, eager, eager if form is in_float64 else run(form, wide(like(dtype))))


def test_a_gradient_that_is_wanted() -> None:
    args = inputs(ROWS[0], torch.float32)
    ours = compiled(swiglu, args, grad=True)
    assert ours.rewrites("quantise") == 0
    assert "no gradient goes through what is rounded, and one is wanted" in ours.reasons()
    check(ours, run(swiglu, args, grad=True), run(swiglu, wide(args), grad=True))


def test_it_is_left_alone_by_default() -> None:
    ours = compiled(swiglu, like(torch.float32), policy="auto")
    assert not ours.record.rewritten
    assert "quantise" in {n.pattern.split(".")[0] for n in ours.record.near_misses}


def test_what_is_read_again_may_be_an_input() -> None:
    """A cast to the dtype that is there gives the tensor itself, which stays outside."""

    def straight_through(x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        scale = y.abs().amax(-1, keepdim=True) / 127
        return y + ((y / scale).round() * scale - y).detach()

    x = torch.randn(4, 16)
    ours = compiled(straight_through, (x,))
    assert region(ours)
    assert not ours.record.failures
    check(ours, run(straight_through, (x,)), run(straight_through, wide((x,))))
