"""Every norm and every rotation of real models, in small, is found, and numbers are as near to fp64
as eager's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.events import Rewritten
from tests.compiled import assert_near, compiled, run, wide
from tests.every import some
from tests.models.case import Outputs
from tests.norm.models import CASES, ROTATED, normalisations

IMAGES = ("vae", "convnext")
"""Whose channels may come last in memory."""
HALF = ("vae", "pixart", "wan", "convnext", "gemma3", "qwen3")
SIZES = {"convnext": ("x", (0, 2, 3)), "sd3": ("encoder_hidden_states", (1,)),
         "timm-vit": ("x", (0,)), "gemma3": ("input_ids", (0, 1))}  # fmt: skip
"""By model, an input and its dimensions whose sizes are not known while compiling."""
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


def _check(
    name: str, *, grad: bool = False, adapt: Callable[[Any], Any] = lambda x: x, dynamic: Any = ()
) -> None:
    """With its weights and inputs adapted, and inputs of dynamic size."""
    case = CASES[name]
    model = case.build(case.implementations[-1]).train(grad)
    model._apply(adapt)
    inputs = {k: adapt(x) if _is_floating(x) else x for k, x in case.inputs().items()}
    with normalisations(model) as ran:
        eager = run(Outputs(case, model), (), inputs, grad=grad)
    exact = run(Outputs(case, wide(model)), (), wide(inputs), grad=grad)
    for key, dims in dynamic:
        for dim in dims:
            torch._dynamo.mark_dynamic(inputs[key], dim)
    ours = compiled(Outputs(case, model), (), inputs, grad=grad)
    assert ran
    assert ours.rewrites("norm") == len(ran), ours.reasons()
    assert_near(ours, eager, exact)


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _half(x: Tensor) -> Tensor:
    return x.bfloat16() if x.is_floating_point() else x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@pytest.mark.parametrize("name", some([*CASES], 2))
def test_inference(name: str) -> None:
    _check(name)


@pytest.mark.parametrize("name", some([*CASES], 2, 1))
def test_training(name: str) -> None:
    _check(name, grad=True)


@pytest.mark.parametrize("name", some(HALF, 2))
def test_half_precision(name: str) -> None:
    _check(name, adapt=_half)


@pytest.mark.parametrize("name", IMAGES)
def test_channels_last(name: str) -> None:
    _check(name, grad=True, adapt=_channels_last)


@pytest.mark.parametrize("name", SIZES)
def test_any_size(name: str) -> None:
    _check(name, dynamic=[SIZES[name]])


def _rotates(region: Rewritten) -> bool:
    """Whether each element is computed of both members of a pair."""
    return region.pattern == "rope.rotation" or "nb" in region.facts.get("after", "")


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # Kandinsky's norms are in fp32 whatever comes
@pytest.mark.parametrize("name", some([*ROTATED], 3))
def test_rotations(name: str) -> None:
    case, count = ROTATED[name]
    model, inputs = case.build(case.implementations[-1]), case.inputs()
    ours = compiled(Outputs(case, model), (), inputs)
    assert sum(r.count for r in ours.record.rewritten if _rotates(r)) == count, ours.reasons()
    assert not [n for n in ours.record.near_misses if n.pattern == "rope.rotation"]
    exact = run(Outputs(case, wide(model)), (), wide(inputs))
    assert_near(ours, run(Outputs(case, model), (), inputs), exact)


def test_rotations_that_are_written_back_in_training() -> None:
    """Of what is overwritten no backward reads anything."""
    case, count = ROTATED["cogvideox"]
    model, inputs = case.build(case.implementations[-1]).train(), case.inputs()
    ours = compiled(Outputs(case, model), (), inputs, grad=True)
    assert sum(r.count for r in ours.record.rewritten if _rotates(r)) == count, ours.reasons()
    exact = run(Outputs(case, wide(model)), (), wide(inputs), grad=True)
    assert_near(ours, run(Outputs(case, model), (), inputs, grad=True), exact)
