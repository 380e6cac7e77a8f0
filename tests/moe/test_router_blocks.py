"""Whole blocks of transformers: the router and the mixture behind it, in one rewrite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from tests.compiled import assert_near, compiled, run, wide

SIZES = {"hidden_size": 16, "num_experts_per_tok": 2, "num_attention_heads": 2}


def _mixtral() -> nn.Module:
    return MixtralSparseMoeBlock(MixtralConfig(**SIZES, intermediate_size=24, num_local_experts=6))


def _qwen3() -> nn.Module:
    return Qwen3MoeSparseMoeBlock(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=24, num_experts=6, norm_topk_prob=True)
    )


def _deepseek_v3() -> nn.Module:
    return DeepseekV3MoE(
        DeepseekV3Config(
            **SIZES, moe_intermediate_size=24, n_routed_experts=8, n_group=4, topk_group=2,
            n_shared_experts=1,
        )
    )  # fmt: skip


def _running(module: nn.Module, implementation: str) -> nn.Module:
    """The block, its experts run by one of the library's implementations."""
    for part in module.modules():
        if hasattr(part, "config"):
            part.config._experts_implementation = implementation
    return module


CASES = [(_mixtral, "triton"), (_qwen3, "reference"), (_deepseek_v3, "triton")]


@pytest.mark.parametrize(("block", "lowering"), CASES)
def test_both_regions_are_found(block: Callable[[], nn.Module], lowering: str) -> None:
    torch.manual_seed(0)
    module = _running(block().eval(), "grouped_mm")
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 5, 16, requires_grad=True)
    ours = compiled(module, (x,), grad=True, **{"fuser.lowering": lowering})
    found = [r.pattern for r in ours.record.rewritten if not r.pattern.startswith("activation.")]
    assert sorted(found) == ["moe.mixture", "router.top_k"], ours.reasons()
    exact = _running(wide(module), "eager")  # grouped products know no fp64
    assert_near(ours, run(module, (x,), grad=True), run(exact, wide((x,)), grad=True))
