"""Text encoders, encoder-decoders and speech."""

from __future__ import annotations

from typing import Any

from torch import nn

from .case import (
    BATCH,
    BOTH,
    EAGER_ONLY,
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    SEQ,
    VOCAB,
    ModelCase,
    hidden,
    logits,
    normal,
    padding,
    seeded,
    tokens,
)

TARGET = 13  # tokens on the decoder's side
UNSCALED = 0.8  # T5 divides no score by sqrt(d)


def _bert(implementation: str) -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=32,
        attn_implementation=implementation,
    )
    return BertModel(config, add_pooling_layer=False)


def _distilbert(implementation: str) -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=VOCAB,
        dim=HIDDEN,
        n_layers=LAYERS,
        n_heads=HEADS,
        hidden_dim=FFN,
        dropout=0.0,
        attention_dropout=0.0,
        max_position_embeddings=32,
        attn_implementation=implementation,
    )
    return DistilBertModel(config)


def _deberta_v2(implementation: str) -> nn.Module:
    from transformers import DebertaV2Config, DebertaV2Model

    config = DebertaV2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=32,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=9,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        attn_implementation=implementation,
    )
    return DebertaV2Model(config)


def _clip_text(implementation: str) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
    )
    return CLIPTextModel(config)


def _t5(implementation: str) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB,
        d_model=HIDDEN,
        d_kv=HEAD_DIM,
        d_ff=FFN,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
        attn_implementation=implementation,
    )
    return T5ForConditionalGeneration(config)


def _whisper(implementation: str) -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCAB,
        num_mel_bins=10,
        d_model=HIDDEN,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=FFN,
        decoder_layers=LAYERS,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=FFN,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_source_positions=SEQ,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        use_cache=False,
        attn_implementation=implementation,
    )
    return WhisperForConditionalGeneration(config)


def _ids() -> dict[str, Any]:
    return {"input_ids": tokens()}


def _padded() -> dict[str, Any]:
    return {"input_ids": tokens(), "attention_mask": padding()}


def _pair() -> dict[str, Any]:
    return _ids() | {"decoder_input_ids": tokens(BATCH, TARGET, seed=2), "use_cache": False}


def _pair_padded() -> dict[str, Any]:
    return _pair() | {"attention_mask": padding()}


def _speech() -> dict[str, Any]:
    return {
        "input_features": normal(BATCH, 10, 2 * SEQ),
        "decoder_input_ids": tokens(BATCH, TARGET),
        "use_cache": False,
    }


CASES = (
    ModelCase("bert", seeded(_bert), _ids, BOTH, LAYERS, hidden),
    ModelCase("bert-padded", seeded(_bert), _padded, BOTH, LAYERS, hidden),
    ModelCase("distilbert", seeded(_distilbert), _ids, BOTH, LAYERS, hidden),
    ModelCase("deberta-v2", seeded(_deberta_v2), _padded, EAGER_ONLY, LAYERS, hidden),
    ModelCase("clip-text", seeded(_clip_text), _ids, BOTH, LAYERS, hidden),
    ModelCase("t5", seeded(_t5, gain=UNSCALED), _pair, BOTH, 3 * LAYERS, logits),
    ModelCase("t5-padded", seeded(_t5, gain=UNSCALED), _pair_padded, BOTH, 3 * LAYERS, logits),
    ModelCase("whisper", seeded(_whisper), _speech, BOTH, 3 * LAYERS, logits),
)
