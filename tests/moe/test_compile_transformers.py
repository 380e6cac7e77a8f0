"""`fuser.compile` and the experts of transformers: the library's own hook, for one model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fuser
from tests.compiled import assert_near, run, wide
from tests.models import CASES

from .forms import EXPERTS, FEATURES
from .test_compile import EVERY, OPTIONS, ours

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def _mixtral() -> tuple[Any, dict[str, Any]]:
    """One layer, with experts that run in a loop over those that were hit."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32, hidden_size=32, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=EXPERTS,
        experts_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(1)
    model = MixtralForCausalLM(config).eval()
    assert model.config._experts_implementation == "eager"
    return model, {"input_ids": torch.arange(14).view(2, 7)}


@pytest.mark.parametrize("name", ["gpt-oss"] if not EVERY else [
    "mixtral", "gpt-oss", "qwen3-moe", "olmoe", "granite-moe", "deepseek-v3",
])  # fmt: skip
def test_eager_experts_of_transformers(name: str) -> None:
    case = CASES[name]
    model, inputs = case.build("eager").train(), case.inputs()
    model.set_experts_implementation("eager")

    class Scores(nn.Module):
        def __init__(self, called: Any) -> None:
            super().__init__()
            self.called = called

        def forward(self, **inputs: Any) -> Tensor:
            return self.called(**inputs).logits

    exact = run(Scores(wide(model)), (), wide(inputs), grad=True)
    eager = run(Scores(model), (), inputs, grad=True)
    found = run(Scores(fuser.compile(model, options=OPTIONS)), (), inputs, grad=True)
    assert counters["fuser"]["moe.loop"] == case.mixtures
    assert counters["stats"]["unique_graphs"] == 1
    assert_near(found, eager, exact)


def test_only_this_model_and_only_compiled_code() -> None:
    from transformers import MixtralForCausalLM

    model, inputs = _mixtral()
    other = MixtralForCausalLM(model.config)  # the very same configuration
    before = model.config.to_dict()
    fuser.compile(model, options=OPTIONS)
    assert model.config._experts_implementation == "eager"
    assert model.config.to_dict() == before
    assert other.config is model.config
    assert all(m.config is other.config for m in other.modules() if hasattr(m, "is_transposed"))
    with torch.no_grad():
        a, b = model(**inputs).logits, copy.deepcopy(model)(**inputs).logits
        assert torch.equal(a, b)
        other.load_state_dict(model.state_dict())
        assert torch.equal(a, other(**inputs).logits)  # its own loop, in eager
    restored = pickle.loads(pickle.dumps(model))
    assert restored.config._experts_implementation == "eager"


@torch.no_grad()
def test_what_the_user_chooses_later_counts() -> None:
    model, inputs = _mixtral()
    compiled = fuser.compile(model, options=OPTIONS)
    expected = compiled(**inputs).logits
    assert counters["fuser"]["moe.loop"] == 1
    model.set_experts_implementation("batched_mm")
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-5)
    assert (counters["fuser"]["moe.mixture"], counters["fuser"]["moe.loop"]) == (1, 1)


@torch.no_grad()
def test_generation() -> None:
    model, inputs = _mixtral()
    compiled = fuser.compile(model, options=OPTIONS)
    prompt = {"input_ids": inputs["input_ids"][:, :4]}
    wanted = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(compiled.generate(**prompt, **wanted), model.generate(**prompt, **wanted))


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_switch(grad: bool) -> None:
    """Its loop over the experts that were hit, with names made from them, is no capture's."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers import modeling_switch_transformers as library

    config = SwitchTransformersConfig(
        d_model=FEATURES,
        d_ff=24,
        num_experts=EXPERTS,
        expert_capacity=3,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    torch.manual_seed(3)
    module = library.SwitchTransformersSparseMLP(config).train(grad)
    x = torch.randn(2, 9, FEATURES, requires_grad=grad)
    found = ours(module, x, grad=grad)
    exact = wide(module)
    exact.router.dtype = torch.float64
    assert_near(found, run(module, (x,), grad=grad), run(exact, wide((x,)), grad=grad))
