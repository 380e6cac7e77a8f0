"""No activation of real models, in small, is left, and numbers are as near to fp64 as eager's.

Few are tried here, one way each, as the tests of norms take activations in the same models, too;
`FUSER_EVERY=1` tries all models in all ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuser.patterns.activation.anchors import NONLINEAR
from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY
from tests.inner import CATCH, caught, operators
from tests.models.case import LAYERS, SDPA_ONLY, ModelCase, Outputs, itself, normal, seeded
from tests.norm.models import CASES as MODELS

WAYS = ("inference", "training", "half", "channels_last", "any size")
IMAGES = ("unet", "vae", "convnext")
SIZES = {
    "convnext": ("x", (0, 2, 3)), "sd3": ("encoder_hidden_states", (1,)), "timm-vit": ("x", (0,)),
    "llama": ("input_ids", (0, 1)), "dense": ("x", (0, 1)),
}  # fmt: skip
"""By model, an input and its dimensions whose sizes are not known while compiling."""
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")


class DenseGlu(nn.Module):
    """GPT-OSS's expert, alone: halves that take turns, both clamped."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(24, 80), nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate_up(x)
        gate, up = h[..., ::2], h[..., 1::2]
        gate, up = gate.clamp(min=None, max=2.0), up.clamp(min=-2.0, max=2.0)
        return x + self.down((up + 1) * (gate * torch.sigmoid(gate * 1.702)))


class Dense(nn.Module):
    def __init__(self, _: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseGlu() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _dense_inputs() -> dict[str, Any]:
    return {"x": normal(2, 5, 24)}


CASES: dict[str, ModelCase] = {
    **MODELS,
    "dense": ModelCase("dense", seeded(Dense), _dense_inputs, SDPA_ONLY, 0, itself),
}
GATES = {"llama": LAYERS, "gemma": LAYERS, "qwen3": LAYERS, "dense": LAYERS}
"""How many there are."""
REFERENCE = {"fuser.lowering": "reference"}
"""Other lowerings of norms leave their activations in the graph, for Inductor."""
TRIED = {
    "dense": "training", "timm-vit": "any size", "pixart": "half", "convnext": "channels_last",
}  # fmt: skip


def _ways(name: str) -> list[str]:
    without = {"channels_last": name not in IMAGES, "any size": name not in SIZES}
    return [way for way in WAYS if not without.get(way, False)]


PAIRS = [(n, w) for n in CASES for w in _ways(n)] if EVERY else [*TRIED.items()]


def _adapted(way: str) -> Callable[[Tensor], Tensor]:
    def adapt(x: Tensor) -> Tensor:
        if way == "half" and x.is_floating_point():
            return x.bfloat16()
        if way == "channels_last" and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    return adapt


@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_models(name: str, way: str) -> None:
    case, adapt, grad = CASES[name], _adapted(way), way == "training"
    model = case.build(case.implementations[-1]).train(grad)
    model._apply(adapt)
    inputs = {k: adapt(x) if isinstance(x, Tensor) else x for k, x in case.inputs().items()}
    eager = run(Outputs(case, model), (), inputs, grad=grad)
    exact = run(Outputs(case, wide(model)), (), wide(inputs), grad=grad)
    if way == "any size":
        key, dims = SIZES[name]
        for dim in dims:
            torch._dynamo.mark_dynamic(inputs[key], dim)
    graphs = caught()
    ours = compiled(Outputs(case, model), (), inputs, grad=grad, inner=CATCH, **REFERENCE)
    left = [op for graph in graphs for op in operators(graph) if op in NONLINEAR or op == "glu"]
    assert left == [], ours.reasons()
    assert ours.rewrites("activation") or name == "vae"  # all of whose are its norms'
    found = [r.pattern for r in ours.record.rewritten]
    assert found.count("activation.gated") == GATES.get(name, found.count("activation.gated"))
    assert_near(ours, eager, exact)
