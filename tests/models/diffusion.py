"""Diffusion models: "eager" is diffusers' legacy `AttnProcessor`, "sdpa" its default one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .case import (
    BATCH,
    BOTH,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    SEQ,
    ModelCase,
    normal,
    sample,
    seeded,
)

CHANNELS = 6  # of the latent
CONTEXT = 40  # width of the text embeddings
SIDE = 10  # of the latent; 25 patches of 2 x 2
STEPS = torch.tensor([7, 251, 903])  # one time step a sample


def _processed(model: nn.Module, implementation: str) -> nn.Module:
    """Sets the processor of every attention, in a model whose attention has both."""
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    processor = AttnProcessor() if implementation == "eager" else AttnProcessor2_0()
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(processor)
    return model


def _unet(implementation: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(24, HIDDEN),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=CONTEXT,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(3, HEADS),  # SDXL's configuration calls the number of heads so
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 28,
    )
    return _processed(model, implementation)


def _unet_inputs() -> dict[str, Any]:
    sizes = torch.tensor([[64.0, 64.0, 0.0, 3.0, 64.0, 64.0]]).repeat(BATCH, 1)
    return {
        "sample": normal(BATCH, CHANNELS, SIDE, SIDE),
        "timestep": STEPS,
        "encoder_hidden_states": normal(BATCH, SEQ, CONTEXT, seed=2),
        "added_cond_kwargs": {"text_embeds": normal(BATCH, 28, seed=3), "time_ids": sizes},
    }


def _vae(implementation: str) -> nn.Module:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(24, 40),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
    )
    return _processed(model, implementation)


def _vae_inputs() -> dict[str, Any]:
    return {"sample": normal(BATCH, 3, SIDE, SIDE)}


def _dit(implementation: str) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        num_layers=LAYERS,
        sample_size=SIDE,
        patch_size=2,
        num_embeds_ada_norm=12,
    )
    for block in model.transformer_blocks:  # otherwise training drops class labels at random
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return _processed(model, implementation)


def _dit_inputs() -> dict[str, Any]:
    return {
        "hidden_states": normal(BATCH, CHANNELS, SIDE, SIDE),
        "timestep": STEPS,
        "class_labels": torch.tensor([1, 9, 4]),
    }


def _pixart(implementation: str) -> nn.Module:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=LAYERS,
        cross_attention_dim=HIDDEN,
        sample_size=SIDE,
        patch_size=2,
        interpolation_scale=1,
        use_additional_conditions=False,
        caption_channels=CONTEXT,
    )
    return _processed(model, implementation)


def _pixart_inputs() -> dict[str, Any]:
    keep = torch.arange(SEQ)[None] < torch.tensor([SEQ, SEQ - 6, SEQ - 11])[:, None]
    return {
        "hidden_states": normal(BATCH, CHANNELS, SIDE, SIDE),
        "encoder_hidden_states": normal(BATCH, SEQ, CONTEXT, seed=2),
        "encoder_attention_mask": keep.long(),
        "timestep": STEPS,
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


CASES = (
    ModelCase("unet", seeded(_unet), _unet_inputs, BOTH, 8, sample),
    ModelCase("vae", seeded(_vae), _vae_inputs, BOTH, 2, sample),
    ModelCase("dit", seeded(_dit), _dit_inputs, BOTH, LAYERS, sample),
    ModelCase("pixart", seeded(_pixart), _pixart_inputs, BOTH, 2 * LAYERS, sample),
)
