"""Rotary embeddings after a norm: one region, and as near to fp64 as eager is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.compiled import assert_near, compiled, run, wide
from tests.every import crossed, some
from tests.norm.forms import FEATURES, ROWS, Form
from tests.norm.forms_rope import FORMS, WIDTHS
from tests.norm.forms_sections import OTHERS, ROTATIONS
from tests.norm.lookalikes_rope import LOOKALIKES
from tests.norm.test_norm import DTYPES, inputs
from tests.norm.test_results import NAMES, region

LOWERINGS = ["reference", "triton"]


def like(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return inputs(ROWS[0], dtype)


@pytest.mark.parametrize(
    ("form", "dtype", "lowering"), crossed(ROTATIONS, DTYPES, LOWERINGS), **NAMES
)
def test_rotations(form: Form, dtype: torch.dtype, lowering: str) -> None:
    args = like(dtype)
    ours = compiled(form, args, grad=True, **{"fuser.lowering": lowering})
    assert "nb" in region(ours).facts["after"]
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


@pytest.mark.parametrize("form", some(ROTATIONS, 3), **NAMES)
def test_inference_of_any_size(form: Form) -> None:
    x, w, b = (t.detach() for t in like(torch.float32))
    for dim in (0, 1):
        torch._dynamo.maybe_mark_dynamic(x, dim)
    found = compiled(form, (x, w, b))
    assert "nb" in region(found).facts["after"], found.reasons()
    assert_near(found, run(form, (x, w, b)), run(form, wide((x, w, b))))


@pytest.mark.parametrize(("form", "dtype"), crossed(OTHERS, DTYPES), **NAMES)
def test_what_is_none_of_pairs(form: Form, dtype: torch.dtype) -> None:
    args = like(dtype)
    ours = compiled(form, args, grad=True)
    assert "nb" not in region(ours).facts["after"]
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


def test_the_programs_of_both_members() -> None:
    (form,) = [f for f in ROTATIONS if f.__name__ == "qwen3"]
    found = region(compiled(form, like(torch.float32)))
    own, other = found.facts["after"].split("; ")
    assert own == "(((c0a * na) * c1a) + (neg((c0b * nb)) * c2a))"
    assert other == "(((c0b * nb) * c1b) + ((c0a * na) * c2b))"
    assert FEATURES == 16


@pytest.mark.parametrize(("case", "dtype", "lowering"), crossed(FORMS, DTYPES, LOWERINGS), **NAMES)
def test_without_a_norm(case: tuple[Form, int], dtype: torch.dtype, lowering: str) -> None:
    form, count = case
    args = like(dtype)
    ours = compiled(form, args, grad=True, **{"fuser.lowering": lowering})
    assert ours.rewrites("rope") == count, ours.reasons()
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


@pytest.mark.parametrize(("form", "count"), some(FORMS, 3), **NAMES)
def test_without_a_norm_of_any_size(form: Form, count: int) -> None:
    x, w, b = (t.detach() for t in like(torch.float32))
    for dim in (0, 1):
        torch._dynamo.maybe_mark_dynamic(x, dim)
    found = compiled(form, (x, w, b))
    assert found.rewrites("rope") == count, found.reasons()
    assert_near(found, run(form, (x, w, b)), run(form, wide((x, w, b))))


@pytest.mark.parametrize(("form", "count"), WIDTHS, **NAMES)
def test_any_width(form: Form, count: int) -> None:
    args = like(torch.float32)
    torch._dynamo.maybe_mark_dynamic(args[0], 2)
    found = compiled(form, args, grad=True)
    assert found.rewrites("rope") == count, found.reasons()
    assert_near(found, run(form, args, grad=True), run(form, wide(args), grad=True))


@pytest.mark.parametrize(("case", "dtype"), crossed(LOOKALIKES, DTYPES), **NAMES)
def test_lookalikes(case: tuple[Form, str], dtype: torch.dtype) -> None:
    form, reason = case
    args = like(dtype)
    found = compiled(form, args, grad=True)
    assert found.rewrites("rope") == 0
    assert reason in found.reasons()
    assert bool(reason) == bool(found.record.near_misses)
    eager = run(form, args, grad=True)
    exact = eager if "float64" in reason else run(form, wide(args), grad=True)
    assert_near(found, eager, exact)


def test_a_half_that_is_put_back_is_no_near_miss() -> None:
    (fn,) = [form for form, _ in FORMS if form.__name__ == "half_of_it"]
    found = compiled(fn, like(torch.float32))
    assert found.rewrites("rope") == 1
    assert not found.record.near_misses, found.reasons()


def test_it_is_left_alone_by_default() -> None:
    (fn,) = [form for form, _ in FORMS if form.__name__ == "llama"]
    found = compiled(fn, like(torch.float32), policy="auto")
    assert found.rewrites("rope") == 0
    assert "the interpreter is for checking numbers" in found.reasons()
