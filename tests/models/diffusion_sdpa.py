"""Diffusion transformers that diffusers writes with `scaled_dot_product_attention` alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .case import (
    BATCH,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    SDPA_ONLY,
    SEQ,
    ModelCase,
    normal,
    sample,
    seeded,
)
from .diffusion import CHANNELS, CONTEXT, SIDE, STEPS

FRAMES = 5  # of the video, 2 of its latent


def _sd3(_: str) -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=LAYERS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=CONTEXT,
        caption_projection_dim=HIDDEN,
        pooled_projection_dim=28,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),  # as SD3.5: the first block attends twice
        qk_norm="rms_norm",
    )


def _sd3_inputs() -> dict[str, Any]:
    return {
        "hidden_states": normal(BATCH, CHANNELS, SIDE, SIDE),
        "encoder_hidden_states": normal(BATCH, SEQ, CONTEXT, seed=2),
        "pooled_projections": normal(BATCH, 28, seed=3),
        "timestep": STEPS,
    }


def _flux(_: str) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=CONTEXT,
        pooled_projection_dim=28,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def _flux_inputs() -> dict[str, Any]:
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(5.0), torch.arange(5.0))
    return {
        "hidden_states": normal(BATCH, 25, CHANNELS),
        "encoder_hidden_states": normal(BATCH, SEQ, CONTEXT, seed=2),
        "pooled_projections": normal(BATCH, 28, seed=3),
        "timestep": STEPS / 1000,
        "guidance": torch.tensor([3.5, 3.5, 2.0]),
        "img_ids": places,
        "txt_ids": torch.zeros(SEQ, 3),
    }


def _cogvideox(_: str) -> nn.Module:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=36,
        text_embed_dim=CONTEXT,
        num_layers=LAYERS,
        sample_width=SIDE,
        sample_height=SIDE,
        sample_frames=FRAMES,
        temporal_compression_ratio=4,
        max_text_seq_length=SEQ,
        use_rotary_positional_embeddings=True,
    )


def _cogvideox_inputs() -> dict[str, Any]:
    frames = 2
    angles = normal(frames * 25, HEAD_DIM // 2, seed=3).repeat_interleave(2, dim=1)
    return {
        "hidden_states": normal(BATCH, frames, CHANNELS, SIDE, SIDE),
        "encoder_hidden_states": normal(BATCH, SEQ, CONTEXT, seed=2),
        "timestep": STEPS,
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def _wan(_: str) -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=CONTEXT,
        freq_dim=32,
        ffn_dim=80,
        num_layers=LAYERS,
        rope_max_seq_len=32,
    )


def _wan_inputs() -> dict[str, Any]:
    return {
        "hidden_states": normal(BATCH, CHANNELS, 2, SIDE, SIDE),
        "timestep": STEPS,
        "encoder_hidden_states": normal(BATCH, SEQ, CONTEXT, seed=2),
    }


CASES = (
    ModelCase("sd3", seeded(_sd3), _sd3_inputs, SDPA_ONLY, LAYERS + 1, sample),
    ModelCase("flux", seeded(_flux), _flux_inputs, SDPA_ONLY, 2, sample),
    ModelCase("cogvideox", seeded(_cogvideox), _cogvideox_inputs, SDPA_ONLY, LAYERS, sample),
    ModelCase("wan", seeded(_wan), _wan_inputs, SDPA_ONLY, 2 * LAYERS, sample),
)
