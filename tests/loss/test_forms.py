"""Every form is found, and is as near to fp64 as eager is: results and all gradients.

`FUSER_EVERY=1` takes every form with the reference and in every dtype.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fuser.lowering.loss import sweep
from tests.compiled import assert_near, compiled, run, wide
from tests.every import some

from .forms import BATCH, CLASSES, FEATURES, FORMS, LENGTH, Each, Head, labels
from .lookalikes import LOOKALIKES, LookAlike

ATEN: dict[str, Any] = {"fuser.lowering": "aten"}
CASES = [
    *((form, "aten") for form in FORMS),
    *((form, "reference") for form in some(FORMS, 3)),
]
HALVED = [
    *((form, torch.bfloat16) for form in some(FORMS, 2)),
    *((form, torch.float16) for form in some(FORMS, 4, 1)),
]


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows at a time, of which two are in the cache."""
    monkeypatch.setattr(sweep, "CHUNK", 5 * CLASSES * 4)
    monkeypatch.setattr(sweep, "BLOCK", 2 * CLASSES)


def hidden(dtype: torch.dtype = torch.float32, length: int = LENGTH) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(BATCH, length, FEATURES).to(dtype).requires_grad_()


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("form", "lowering"), CASES, ids=lambda f: getattr(f, "__name__", f))
def test_forms(form: type[Head], lowering: str) -> None:
    module, inputs, options = form(), (hidden(), labels()), dict[str, Any](ATEN)
    options["fuser.lowering"] = lowering
    ours = compiled(module, inputs, grad=True, **options)
    assert ours.rewrites("loss") == 1, ours.reasons()
    exact = run(wide(module), wide(inputs), grad=True)
    assert_near(ours, run(module, inputs, grad=True), exact)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("form", "dtype"), HALVED, ids=lambda f: getattr(f, "__name__", str(f)))
def test_half_precision(form: type[Head], dtype: torch.dtype) -> None:
    module, inputs = form().to(dtype), (hidden(dtype), labels())
    ours = compiled(module, inputs, grad=True, **ATEN)
    assert ours.rewrites("loss") == 1, ours.reasons()
    exact = run(wide(module), wide(inputs), grad=True)
    assert_near(ours, run(module, inputs, grad=True), exact)


@pytest.mark.parametrize("form", FORMS[::3], ids=lambda f: f.__name__)
def test_without_gradients(form: type[Head]) -> None:
    module, inputs = form(), (hidden(), labels())
    ours = compiled(module, inputs, inner="eager", **ATEN)
    assert ours.rewrites("loss") == 1, ours.reasons()
    assert_near(ours, run(module, inputs), run(wide(module), wide(inputs)))


@pytest.mark.parametrize("case", LOOKALIKES, ids=lambda c: c.module.__name__)
def test_lookalikes(case: LookAlike) -> None:
    module, inputs = case.module(), (hidden(), labels())
    ours = compiled(module, inputs, grad=True, inner="eager")
    assert ours.rewrites("loss") == 0
    assert case.reason in ours.reasons()
    exact = run(wide(module), wide(inputs), grad=True)
    eager = run(module, inputs, grad=True)
    if case.module.__name__ != "Dropout":  # fp64 draws other numbers
        assert_near(ours, eager, exact)
    assert_near(ours, eager, eager)


@pytest.mark.parametrize("form", [*FORMS[:3], Each], ids=lambda f: f.__name__)
def test_any_number_of_rows(form: type[Head]) -> None:
    """One compilation."""
    module = form()
    torch._dynamo.reset()
    target = torch.compile(
        module,
        backend="fuser",
        dynamic=True,
        options={"fuser.inner": "aot_eager", "fuser.policy": "always", "fuser.strict": True},
    )
    for length in (LENGTH, 11, 30):
        x = hidden(length=length)
        own = labels().repeat(1, 5)[:, :length].contiguous()
        with torch.compiler.set_stance("default" if length == LENGTH else "fail_on_recompile"):
            ours = run(target, (x, own), grad=True)
        eager = run(module, (x, own), grad=True)
        assert_near(ours, eager, run(wide(module), wide((x, own)), grad=True))
    counted = torch._dynamo.utils.counters["fuser"]["loss.linear_cross_entropy"]
    assert counted >= 1
