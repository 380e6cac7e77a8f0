"""Every form is found, and is as near to fp64 as eager is: results and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY, some
from tests.moe.capacities import BestTwo
from tests.moe.chains import SharedBetween
from tests.moe.forms import (
    FEATURES,
    FORMS,
    TOKENS,
    DenseEinsum,
    Gathered,
    Mixture,
    Stack,
)
from tests.moe.sorting import ScatteredToTokens

HALVED: list[tuple[type[Mixture], str]] = [
    *((form, "triton") for form in some(FORMS, 6)),
    *((form, "aten") for form in (BestTwo, SharedBetween, ScatteredToTokens)),
]
"""With the lowering."""
LOWERINGS: list[dict[str, Any]] = [
    {"fuser.lowering": kind} for kind in (("reference",) if EVERY else ()) + ("aten", "triton")
]


@pytest.mark.parametrize("options", LOWERINGS, ids=lambda o: o["fuser.lowering"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_forms(form: type[Mixture], options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    module, x = form().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    ours = compiled(module, (x,), grad=True, **options)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("dtype", some([torch.bfloat16, torch.float16], 2), ids=str)
@pytest.mark.parametrize(("form", "lowering"), HALVED, ids=lambda f: getattr(f, "__name__", str(f)))
def test_half_precision(form: type[Mixture], lowering: str, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    module = form().eval().to(dtype)
    x = torch.randn(TOKENS, FEATURES, dtype=dtype, requires_grad=True)
    ours = compiled(module, (x,), grad=True, **{"fuser.lowering": lowering})
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))


@pytest.mark.parametrize("form", [Stack, DenseEinsum, Gathered], ids=lambda f: f.__name__)
def test_autocast(form: type[Mixture]) -> None:
    """Products in bf16 where eager has them, of parameters in fp32."""

    def cast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x)

    torch.manual_seed(2)
    module, x = form().eval(), torch.randn(TOKENS, FEATURES, requires_grad=True)
    ours, eager = compiled(cast, (x,), grad=True, **LOWERINGS[-1]), run(cast, (x,), grad=True)
    assert ours.rewrites("moe") == 1, ours.reasons()
    assert [out.dtype for out in ours.outputs] == [out.dtype for out in eager.outputs]
    exact = run(wide(module), wide((x,)), grad=True)
    for a, b, c in zip(ours.outputs, eager.outputs, exact.outputs, strict=True):
        assert (a - c).abs().max() <= 2 * (b - c).abs().max()
