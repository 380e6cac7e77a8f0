"""A zoo of tiny random-weight models: what fuser meets in the libraries, in small.

The map:

    case.py       `ModelCase`, the shared sizes, inputs, and `sharpen`, which redraws the weights
    language.py   dense decoders: Llama, Mistral, Qwen3, Gemma 2 and 3, GPT-2, BLOOM, MPT, Falcon
    experts.py    mixtures of experts: Mixtral, Qwen3, OLMoE, Granite, Phi, GPT-OSS, DeepSeek-V3,
                  Llama4, Switch
    encoders.py   BERT, DistilBERT, DeBERTa-v2, CLIP text, T5, Whisper
    vision.py     ViT, CLIP vision, Swin, SwinV2, SAM, timm's ViT and Swin
    diffusion.py  UNet, VAE, DiT, PixArt
    diffusion_sdpa.py  SD3, Flux, CogVideoX, Wan
    capture.py    `captures(case, implementation)`: Dynamo's graphs; `attentions(graphs)`: a count

`CASES` maps names to cases. Nothing heavy is imported before a case is built. All models compute in
float32 and give the same result in train and eval mode, except those marked `random_in_training`,
and in every implementation, except those not marked `forms_agree`.
"""

from __future__ import annotations

from . import diffusion, diffusion_sdpa, encoders, experts, language, vision
from .case import ModelCase

CASES: dict[str, ModelCase] = {
    case.name: case
    for family in (language, experts, encoders, vision, diffusion, diffusion_sdpa)
    for case in family.CASES
}

__all__ = ["CASES", "ModelCase"]
