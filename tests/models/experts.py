"""Mixture-of-experts decoders, and Switch, which is an encoder and decoder in many graphs.

The experts run in the library's default way: `grouped_mm` for most, dense bmm for Llama4, a loop
for Switch.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .case import (
    BOTH,
    EAGER_ONLY,
    FFN,
    GQA_HEADS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    VOCAB,
    ModelCase,
    logits,
    seeded,
    tokens,
)
from .language import WINDOW, grouped, text

EXPERTS = 6
TOP_K = 2
EXPERT_FFN = 40


def _without_head_dim(implementation: str, **changes: Any) -> dict[str, Any]:
    """Models that derive the size of a head from the hidden size."""
    config = grouped(implementation, hidden_size=GQA_HEADS * HEAD_DIM, **changes)
    del config["head_dim"]
    return config


def _mixtral(implementation: str) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    changes = {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K}
    return MixtralForCausalLM(MixtralConfig(**grouped(implementation, **changes)))


def _qwen3_moe(implementation: str) -> nn.Module:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    changes = {
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": EXPERT_FFN,
        "norm_topk_prob": True,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**grouped(implementation, **changes)))


def _olmoe(implementation: str) -> nn.Module:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    changes = {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K}
    return OlmoeForCausalLM(OlmoeConfig(**_without_head_dim(implementation, **changes)))


def _granite_moe(implementation: str) -> nn.Module:
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    changes = {
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "attention_multiplier": 0.2,  # unlike 1 / sqrt(HEAD_DIM), so assuming that shows
        "residual_multiplier": 0.7,
        "embedding_multiplier": 1.3,
        "logits_scaling": 1.7,
    }
    return GraniteMoeForCausalLM(GraniteMoeConfig(**_without_head_dim(implementation, **changes)))


def _phimoe(implementation: str) -> nn.Module:
    from transformers import PhimoeConfig, PhimoeForCausalLM

    changes = {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K}
    return PhimoeForCausalLM(PhimoeConfig(**_without_head_dim(implementation, **changes)))


def _gpt_oss(implementation: str) -> nn.Module:
    from transformers import GptOssConfig, GptOssForCausalLM

    changes = {
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 131072,  # what its default YaRN parameters belong to
    }
    return GptOssForCausalLM(GptOssConfig(**grouped(implementation, **changes)))


def _deepseek_v3(implementation: str) -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    changes = {
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": 24,
        "kv_lora_rank": 20,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "moe_intermediate_size": EXPERT_FFN,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "n_group": 3,
        "topk_group": 2,
        "first_k_dense_replace": 1,  # one dense layer, one of experts
    }
    config = grouped(implementation, **changes)
    del config["head_dim"]
    return DeepseekV3ForCausalLM(DeepseekV3Config(**config))


def _llama4(implementation: str) -> nn.Module:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    changes = {
        "intermediate_size_mlp": FFN,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 1,
        "attention_chunk_size": WINDOW,
        "no_rope_layers": [1, 0],  # one chunked layer with RoPE, one full layer without
        "floor_scale": 4,  # low, so that the temperature without RoPE varies in a short text
    }
    return Llama4ForCausalLM(Llama4TextConfig(**grouped(implementation, **changes)))


def _switch(implementation: str) -> nn.Module:
    from transformers import (
        SwitchTransformersConfig,
        SwitchTransformersForConditionalGeneration,
    )

    config = SwitchTransformersConfig(
        vocab_size=VOCAB,
        d_model=HIDDEN,
        d_kv=HEAD_DIM,
        d_ff=FFN,
        expert_capacity=48,
        num_layers=LAYERS,
        num_sparse_encoder_layers=1,
        num_decoder_layers=LAYERS,
        num_sparse_decoder_layers=1,
        num_heads=HEADS,
        num_experts=EXPERTS,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
        attn_implementation=implementation,
    )
    return SwitchTransformersForConditionalGeneration(config)


def _pair() -> dict[str, Any]:
    return text() | {"decoder_input_ids": tokens(3, 13, seed=2)}


CASES = (
    ModelCase("mixtral", seeded(_mixtral), text, BOTH, LAYERS, logits, mixtures=LAYERS),
    ModelCase("qwen3-moe", seeded(_qwen3_moe), text, BOTH, LAYERS, logits, mixtures=LAYERS),
    ModelCase("olmoe", seeded(_olmoe), text, BOTH, LAYERS, logits, mixtures=LAYERS),
    ModelCase("granite-moe", seeded(_granite_moe), text, BOTH, LAYERS, logits, mixtures=LAYERS),
    # its training router (sparsemixer) samples experts
    ModelCase(
        "phimoe",
        seeded(_phimoe),
        text,
        BOTH,
        LAYERS,
        logits,
        random_in_training=True,
        mixtures=LAYERS,
    ),
    ModelCase("gpt-oss", seeded(_gpt_oss), text, EAGER_ONLY, LAYERS, logits, mixtures=LAYERS),
    ModelCase("deepseek-v3", seeded(_deepseek_v3), text, BOTH, LAYERS, logits, mixtures=1),
    ModelCase("llama4", seeded(_llama4), text, BOTH, LAYERS, logits, mixtures=LAYERS),
    # 19 graphs on torch 2.13: the loop over the experts that were hit breaks around sparse layers
    ModelCase(
        "switch",
        seeded(_switch, gain=0.8),
        _pair,
        EAGER_ONLY,
        3 * LAYERS,
        logits,
        one_graph=False,
    ),
)
