"""Every form is found, and is as near to fp64 as eager is; look-alikes are left with a reason.

By default a quarter of the forms go through the generated kernels, in Triton's interpreter, and the
others through the reference, in one dtype each; `FUSER_EVERY=1` takes all through both.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.activation import forms
from tests.activation.forms import CHANNELS, FEATURES, GATED, IMAGES, PLAIN, ROUNDED, Form
from tests.activation.lookalikes import IN_PART, LOOKALIKES, WIDE, WRITING
from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY, crossed, some

DTYPES = [torch.float32, torch.bfloat16]
BY = ["triton", "reference"]
FORMS = [*GATED, *PLAIN, *IMAGES]
CASES = crossed(FORMS, DTYPES, BY if EVERY else ["triton", *["reference"] * 3])


def inputs(form: Form, dtype: torch.dtype, *, last: bool = False) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    if form in IMAGES:
        x, y, size = torch.randn(2, CHANNELS, 3, 5), torch.randn(2, CHANNELS, 3, 5), CHANNELS
        if last:
            x, y = (t.contiguous(memory_format=torch.channels_last) for t in (x, y))
    else:
        x, y = torch.randn(2, FEATURES + 3, FEATURES), torch.randn(2, FEATURES + 3, FEATURES)
        size = FEATURES
    parameters = (torch.randn(size), torch.randn(1))
    return tuple(t.to(dtype).requires_grad_() for t in (x, y, *parameters))


def check(form: Form, args: tuple[Tensor, ...], **options: Any) -> None:
    ours = compiled(form, args, grad=True, **options)
    found = [r.pattern for r in ours.record.rewritten]
    kind = "gated" if forms.is_gated(form) else "plain"
    assert found == [f"activation.{kind}"], ours.reasons()
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


@pytest.mark.parametrize(("form", "dtype", "by"), CASES, ids=lambda f: getattr(f, "__name__", None))
def test_forms(form: Form, dtype: torch.dtype, by: str) -> None:
    check(form, inputs(form, dtype), **{"fuser.lowering": by})


@pytest.mark.parametrize(
    ("form", "by"), crossed(IMAGES, BY), ids=lambda of: getattr(of, "__name__", of)
)
def test_channels_last(form: Form, by: str) -> None:
    args = inputs(form, torch.float32, last=True)
    found = compiled(form, args, **{"fuser.lowering": by}).outputs
    assert [y.stride() for y in found] == [y.stride() for y in run(form, args).outputs]
    check(form, args, **{"fuser.lowering": by})


@pytest.mark.parametrize("form", some(FORMS, 7), ids=lambda f: f.__name__)
def test_inference_of_any_size(form: Form) -> None:
    args = tuple(t.detach() for t in inputs(form, torch.float32))
    for x in args[:2]:
        for dim in (0, 2, 3) if form in IMAGES else (0, 1):
            torch._dynamo.maybe_mark_dynamic(x, dim)
    found = compiled(form, args, **{"fuser.lowering": "triton"})
    assert found.rewrites("activation") == 1, found.reasons()
    assert_near(found, run(form, args), run(form, wide(args)))


@pytest.mark.parametrize("dtype", some(DTYPES, 2), ids=str)
@pytest.mark.parametrize(("form", "reason"), LOOKALIKES, ids=lambda f: getattr(f, "__name__", ""))
def test_lookalikes(form: Form, reason: str, dtype: torch.dtype) -> None:
    args, grad = inputs(form, dtype), form not in WRITING
    found = compiled(form, args, grad=grad)
    assert found.rewrites("activation") == (1 if form in IN_PART else 0)
    assert all(r.pattern == "activation.plain" for r in found.record.rewritten)
    assert reason in found.reasons()
    assert bool(reason) == bool(found.record.near_misses)
    eager = run(form, args, grad=grad)
    exact = eager if form in WIDE else run(form, wide(args), grad=grad)
    assert_near(found, eager, exact)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("form", ROUNDED, ids=lambda f: f.__name__)
def test_results_of_eight_bits(form: Form, by: str) -> None:
    """A rounding apart where eager rounds between operators."""
    args = tuple(t.detach() for t in inputs(form, torch.float32))
    found = compiled(form, args, **{"fuser.lowering": by})
    (region,) = found.record.rewritten
    assert "float8" in region.facts["program"] or "int8" in region.facts["program"]
    (ours,), (eager,) = found.outputs, run(form, args).outputs
    assert ours.dtype is eager.dtype
    assert (ours != eager).double().mean() < 0.02


def test_no_gradient_goes_through_eight_bits() -> None:
    """What is rounded stays outside."""
    args = inputs(forms.swiglu_fp8, torch.float32)
    found = compiled(forms.swiglu_fp8, args, grad=True)
    (region,) = found.record.rewritten
    assert "float8" not in region.facts["program"]
    eager = run(forms.swiglu_fp8, args, grad=True)
    assert_near(found, eager, eager)


def test_what_no_gradient_reads_may_be_overwritten() -> None:
    """Eager keeps nothing of a term of a sum either."""

    def form(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        z = y * 2
        out = torch.where(x > 0, z, -z) + F.silu(x)
        return out, z.add_(1)

    args = inputs(form, torch.float32)
    found = compiled(form, args, grad=True)
    (region,) = found.record.rewritten
    assert region.facts["program"] == "(where((c0 > 0), c1, neg(c1)) + silu(c0))"
    assert_near(found, run(form, args, grad=True), run(form, wide(args), grad=True))


SPECIAL = [torch.nan, torch.inf, -torch.inf, 1e4, -1e4, 0.0]
EITHER = (
    forms.hardswish, forms.beside_a_residual, forms.gelu, forms.biases_before, forms.rearranged,
    forms.dropout_of_inference, forms.image_residual,
)  # fmt: skip
"""On a CPU PyTorch's gelu is infinite or NaN at infinity, and the derivatives of hardswish and elu
are 1 or NaN at NaN, by how many elements there are."""
DEFINED = [form for form in FORMS if form not in EITHER]


@pytest.mark.parametrize("special", some(SPECIAL, 3))
@pytest.mark.parametrize("form", some(DEFINED, 12), ids=lambda f: f.__name__)
def test_special_numbers(form: Form, special: float) -> None:
    args = inputs(form, torch.float32)
    with torch.no_grad():
        args[0][0, 0, :3] = special
        args[1][0, 0, 2:5] = special
    ours = compiled(form, args, grad=True, **{"fuser.lowering": "triton"})
    eager = run(form, args, grad=True)
    assert ours.rewrites("activation") == 1
    assert_near(ours, eager, run(form, wide(args), grad=True))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("form", [forms.geglu, forms.dyt], ids=lambda f: f.__name__)
def test_no_elements(form: Form, by: str) -> None:
    _, _, w, a = inputs(form, torch.float32)
    x, y = (torch.zeros(2, 0, FEATURES, requires_grad=True) for _ in range(2))
    check(form, (x, y, w, a), **{"fuser.lowering": by})


@pytest.mark.parametrize(
    ("form", "program"),
    [
        (forms.swiglu, "(silu(c0) * c1)"),
        (forms.geglu, "(c0_0 * gelu(c0_1))"),
        (forms.dyt, "((tanh((c0 * c1)) * c2) + c2)"),
        (forms.two_of_four, "(silu(c0) * c1)"),
        (forms.overlapping_halves, "(silu(c0) * c1)"),
        (forms.halves_turned_around, "(silu(c0) * c1)"),
        (forms.clamped_in_turn, ""),
        (forms.quarters, ""),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_programs(form: Form, program: str) -> None:
    """Parts are parts of one operand where all of them are read, and alike."""
    (found,) = compiled(form, inputs(form, torch.float32)).record.rewritten
    if program:
        assert found.facts["program"] == program
    else:
        assert "parts" in found.facts["c0"]


def test_a_norm_keeps_its_activation() -> None:
    def form(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
        h = torch.layer_norm(x, (FEATURES,), w)
        return torch.layer_norm(y + torch.relu(h) * y, (FEATURES,), w)

    ours = compiled(form, inputs(forms.gelu, torch.float32))
    assert ours.rewrites("norm") == 2, ours.reasons()
    assert ours.rewrites("activation") == 0
    assert not [m for m in ours.record.near_misses if m.pattern.startswith("activation")]


def test_what_a_norm_takes_of_a_region_is_left_to_it() -> None:
    """A residual that is normalised: the gate comes without the sum."""

    def form(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        h = y.flip(1) + torch.relu(x) * y @ torch.eye(FEATURES, dtype=y.dtype)
        g = h + torch.nn.functional.silu(x) * y
        return torch.layer_norm(g, (FEATURES,), w), g

    args = inputs(forms.gelu, torch.float32)
    ours = compiled(form, args, grad=True)
    assert ours.rewrites("norm") == 1, ours.reasons()
    assert ours.rewrites("activation") >= 1, ours.reasons()
    assert_near(ours, run(form, args, grad=True), run(form, wide(args), grad=True))


def test_autocast() -> None:
    def form(x: Tensor, y: Tensor, w: Tensor, a: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return torch.nn.functional.silu(x @ w.diag()) * (y @ w.diag()) + w

    args = inputs(forms.gelu, torch.float32)
    ours, eager = compiled(form, args, grad=True), run(form, args, grad=True)
    assert ours.rewrites("activation") == 1
    assert ours.outputs[0].dtype == eager.outputs[0].dtype
    assert_near(ours, eager, run(form, wide(args), grad=True))


def test_one_compilation_for_all_numbers_of_rows() -> None:
    torch._dynamo.reset()
    options: dict[str, Any] = {
        "fuser.inner": "aot_eager", "fuser.policy": "always", "fuser.strict": True,
        "fuser.lowering": "triton",
    }  # fmt: skip
    target = torch.compile(forms.geglu, backend="fuser", options=options, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 9, 2):
            x = torch.randn(rows, rows + 3, FEATURES, requires_grad=True)
            w, a = torch.randn(FEATURES), torch.randn(1)
            torch.testing.assert_close(target(x, x, w, a), forms.geglu(x, x, w, a))


def test_by_default_it_is_left_with_a_reason() -> None:
    args = inputs(forms.swiglu, torch.float32)
    found = compiled(forms.swiglu, args, grad=True, policy="auto")
    assert found.rewrites("activation") == 0
    assert "Inductor in one loop" in found.reasons()
