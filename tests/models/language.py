"""Dense decoders: grouped queries with RoPE, learned positions, ALiBi, soft caps and windows."""

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
    KV_HEADS,
    LAYERS,
    SEQ,
    VOCAB,
    ModelCase,
    logits,
    padding,
    seeded,
    tokens,
)

WINDOW = 7  # shorter than SEQ, so that a sliding mask differs from a causal one


def grouped(implementation: str, **changes: Any) -> dict[str, Any]:
    """Configuration shared by the decoders with grouped queries."""
    common = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": GQA_HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_cache": False,
        "attn_implementation": implementation,
    }
    return common | changes


def _llama(implementation: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**grouped(implementation)))


def _mistral(implementation: str) -> nn.Module:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**grouped(implementation, sliding_window=WINDOW)))


def _qwen3(implementation: str) -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**grouped(implementation)))


def _gemma2(implementation: str) -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    # a cap of 5 bends scores of a few units; the usual 50 would be invisible
    changes = {"sliding_window": WINDOW, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0}
    return Gemma2ForCausalLM(Gemma2Config(**grouped(implementation, **changes)))


def _gemma3(implementation: str) -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"]
    changes = {"sliding_window": WINDOW, "query_pre_attn_scalar": 24, "layer_types": kinds}
    return Gemma3ForCausalLM(Gemma3TextConfig(**grouped(implementation, **changes)))


def _gpt2(implementation: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=64,
        n_embd=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=FFN,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
        attn_implementation=implementation,
    )
    return GPT2LMHeadModel(config)


def _bloom(implementation: str) -> nn.Module:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        n_layer=LAYERS,
        n_head=HEADS,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cache=False,
        attn_implementation=implementation,
    )
    return BloomForCausalLM(config)


def _mpt(implementation: str) -> nn.Module:
    from transformers import MptConfig, MptForCausalLM

    config = MptConfig(
        d_model=HIDDEN,
        n_heads=HEADS,
        n_layers=LAYERS,
        expansion_ratio=2,
        max_seq_len=64,
        vocab_size=VOCAB,
        use_cache=False,
        attn_implementation=implementation,
    )
    return MptForCausalLM(config)


def _falcon(implementation: str, alibi: bool) -> nn.Module:
    from transformers import FalconConfig, FalconForCausalLM

    config = FalconConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_hidden_size=FFN,
        alibi=alibi,
        multi_query=not alibi,
        parallel_attn=not alibi,
        bias=alibi,
        max_position_embeddings=64,
        use_cache=False,
        attn_implementation=implementation,
    )
    return FalconForCausalLM(config)


def _falcon_rope(implementation: str) -> nn.Module:
    return _falcon(implementation, alibi=False)


def _falcon_alibi(implementation: str) -> nn.Module:
    return _falcon(implementation, alibi=True)


def text() -> dict[str, Any]:
    """Unpadded token ids."""
    return {"input_ids": tokens(), "use_cache": False}


def _right_padded() -> dict[str, Any]:
    return text() | {"attention_mask": padding()}


def _left_padded() -> dict[str, Any]:
    """The first queries of a row see no key at all: the finfo.min trap of captured-graphs.md."""
    return text() | {"attention_mask": padding(left=True)}


CASES = (
    ModelCase("llama", seeded(_llama), text, BOTH, LAYERS, logits),
    ModelCase("llama-padded", seeded(_llama), _right_padded, BOTH, LAYERS, logits),
    # rows without a key: uniform over all keys in eager, over something else in SDPA
    ModelCase(
        "llama-left-padded", seeded(_llama), _left_padded, BOTH, LAYERS, logits, forms_agree=False
    ),
    ModelCase("mistral", seeded(_mistral), text, BOTH, LAYERS, logits),
    ModelCase("qwen3", seeded(_qwen3), text, BOTH, LAYERS, logits),
    ModelCase("gemma2", seeded(_gemma2), text, EAGER_ONLY, LAYERS, logits),
    ModelCase("gemma3", seeded(_gemma3), text, BOTH, LAYERS, logits),
    ModelCase("gpt2", seeded(_gpt2), text, BOTH, LAYERS, logits),
    ModelCase("bloom", seeded(_bloom), text, EAGER_ONLY, LAYERS, logits),
    ModelCase("mpt", seeded(_mpt), text, EAGER_ONLY, LAYERS, logits),
    ModelCase("falcon-rope", seeded(_falcon_rope), text, BOTH, LAYERS, logits),
    # transformers adds ALiBi twice in eager (to the mask and to the scores), once in SDPA
    ModelCase("falcon-alibi", seeded(_falcon_alibi), text, BOTH, LAYERS, logits, forms_agree=False),
)

assert SEQ > 2 * WINDOW
