"""Causal language models of transformers, with labels: one region, the numbers of eager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compiled import assert_near, compiled, run, wide

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 40, "use_cache": False,
}  # fmt: skip
ALONE: dict[str, Any] = {"fuser.patterns": "loss.*"}


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _gemma2() -> nn.Module:
    """A soft cap, and a matrix that is the embedding's."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=5.0))


class Training(nn.Module):
    """What a trainer asks a model for: the loss alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.model(input_ids=ids, labels=labels).loss


@pytest.mark.parametrize("make", [_llama, _gemma2], ids=lambda f: f.__name__[1:])
def test_causal_model(make: Any) -> None:
    torch.manual_seed(0)
    module, ids = Training(make()).train(), torch.arange(18).remainder(40).view(2, 9)
    labels = ids.masked_fill(ids < 3, -100)
    ours = compiled(module, (ids, labels), grad=True, **ALONE)
    assert ours.rewrites("loss") == 1, ours.reasons()
    exact = run(wide(module), (ids, labels), grad=True)
    assert_near(ours, run(module, (ids, labels), grad=True), exact)


def test_logits_in_the_output() -> None:
    module, ids = _llama().train(), torch.arange(18).view(2, 9)
    ours = compiled(module, (), {"input_ids": ids, "labels": ids}, inner="eager")
    assert ours.rewrites("loss") == 0
    near = next(n for n in ours.record.near_misses if n.pattern.startswith("loss."))
    assert near.reason == "the logits are used elsewhere: returned"
    assert near.hint == "do not return them: compile what gives the loss alone"
