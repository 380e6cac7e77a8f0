"""Every normalisation of real models, in small, is found; numbers are as near to fp64 as eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compiled import Run, assert_near, compiled, run, wide
from tests.models import ModelCase
from tests.norm.models import CASES, normalisations
from tests.test_models import Outputs

IMAGES = ("unet", "vae", "convnext")
"""Of these the channels may come last in memory."""
HALF = ("vae", "pixart", "wan", "convnext", "gemma3", "qwen3")
SIZES = {"vae": "sample", "sd3": "hidden_states", "timm-vit": "x", "gemma3": "input_ids"}
"""By model, the input whose sizes are dynamic."""


def _check(case: ModelCase, inputs: dict[str, Any], dtype: torch.dtype, grad: bool) -> Run:
    model = case.build(case.implementations[-1]).to(dtype).train(grad)
    inputs = {k: x.to(dtype) if _is_floating(x) else x for k, x in inputs.items()}
    with normalisations(model) as ran:
        eager = run(Outputs(case, model), (), inputs, grad=grad)
    exact = run(Outputs(case, wide(model)), (), wide(inputs), grad=grad)
    ours = compiled(Outputs(case, model), (), inputs, grad=grad)
    assert ran
    assert ours.rewrites("norm") == len(ran), ours.reasons()
    assert ours.record.failures == []
    assert_near(ours, eager, exact)
    return ours


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


@pytest.mark.parametrize("name", CASES)
def test_inference(name: str) -> None:
    _check(CASES[name], CASES[name].inputs(), torch.float32, False)


@pytest.mark.parametrize("name", CASES)
def test_training(name: str) -> None:
    _check(CASES[name], CASES[name].inputs(), torch.float32, True)


@pytest.mark.parametrize("name", HALF)
def test_half_precision(name: str) -> None:
    _check(CASES[name], CASES[name].inputs(), torch.bfloat16, False)
