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
from tests.every import EVERY
from tests.models import CASES

from .forms import EXPERTS, FEATURES
from .test_compile import OPTIONS

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


def _switch() -> nn.Module:
    """An encoder and a decoder of one layer each, with more experts than tokens choose."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        vocab_size=32, d_model=FEATURES, d_kv=8, d_ff=24, num_heads=2, num_layers=1,
        num_decoder_layers=1, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        num_experts=EXPERTS, expert_capacity=3, dropout_rate=0.0, router_jitter_noise=0.0,
        decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(3)
    return SwitchTransformersForConditionalGeneration(config)


class Logits(nn.Module):
    def __init__(self, called: Any) -> None:
        super().__init__()
        self.called = called

    def forward(self, ids: Tensor) -> Tensor:
        return self.called(input_ids=ids, decoder_input_ids=ids.flip(1), use_cache=False).logits


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_switch(grad: bool) -> None:
    """Its loop over the experts that were hit, with names made from them."""
    model, ids = _switch().train(grad), torch.arange(14).view(2, 7)
    exact = wide(model)
    for module in exact.modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            module.dtype = torch.float64
    options = {**OPTIONS, "fuser.patterns": ["moe.*"]}
    found = run(Logits(fuser.compile(model, options=options)), (ids,), grad=grad)
    assert counters["fuser"]["moe.loop"] == 2
    assert not counters["graph_break"]
    eager, exact = run(Logits(model), (ids,), grad=grad), run(Logits(exact), (ids,), grad=grad)
    for other in (eager, exact):  # no gradient where no token has chosen an expert
        pairs = zip(other.grads, found.grads, strict=True)
        other.grads = [a if a is not None or b is None else torch.zeros_like(b) for a, b in pairs]
    assert_near(found, eager, exact)


@torch.no_grad()
def test_switch_of_another_routing() -> None:
    block = _switch().eval().encoder.block[0].layer[-1]
    compiled = fuser.compile(block, options=OPTIONS, dynamic=True)
    compiled(torch.randn(2, 7, FEATURES))
    assert counters["fuser"]["moe.loop"] == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        for x in (torch.ones(2, 7, FEATURES), torch.randn(3, 8, FEATURES)):
            torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-5)
