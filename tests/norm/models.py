"""Which models are normalised, or rotated, how often: the zoo's, and some that attend to nothing or
as others do.

`CASES` maps names to cases; `normalisations(module)` counts the modules that normalise as they run.
`ROTATED` maps names to cases and how many tensors are rotated in them.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tests import models
from tests.models.case import (
    BATCH,
    LAYERS,
    SDPA_ONLY,
    ModelCase,
    itself,
    logits,
    normal,
    seeded,
)
from tests.models.language import grouped, text
from tests.models.vision import timm_model

FROM_THE_ZOO = (
    "unet", "vae", "sd3", "flux", "pixart", "dit", "cogvideox", "wan", "timm-vit", "llama",
    "gemma3", "qwen3",
)  # fmt: skip


def _convnext(_: str) -> nn.Module:
    """Norms of an image's channels in the stem and before each stage, of features in each block."""
    sizes = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40), "patch_size": 2}
    return timm_model("sdpa", "convnext", "ConvNeXt", **sizes, ls_init_value=0.5)


def _convnext_inputs() -> dict[str, Any]:
    return {"x": normal(BATCH, 3, 32, 32)}


def _gemma(implementation: str) -> nn.Module:
    from transformers import GemmaConfig, GemmaForCausalLM

    return GemmaForCausalLM(GemmaConfig(**grouped(implementation)))


def _glm(implementation: str) -> nn.Module:
    """Neighbours of half of a head are rotated."""
    from transformers import GlmConfig, GlmForCausalLM

    return GlmForCausalLM(GlmConfig(**grouped(implementation)))


def _neox(implementation: str) -> nn.Module:
    """A quarter of a head is rotated, in halves."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**grouped(implementation, hidden_size=128)))


def _phi(implementation: str) -> nn.Module:
    from transformers import PhiConfig, PhiForCausalLM

    sizes = {"hidden_size": 128, "num_key_value_heads": 8}
    return PhiForCausalLM(PhiConfig(**grouped(implementation, **sizes)))


def _kandinsky(_: str) -> nn.Module:
    """By matrices, with a sum over what is read; queries and keys are normalised."""
    from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Attention

    return Kandinsky5Attention(48, 16)


def _kandinsky_inputs() -> dict[str, Any]:
    cos, sin = (angles := normal(7, 1, 8)).cos(), angles.sin()
    turns = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
    return {"hidden_states": normal(2, 7, 48), "rotary_emb": turns}


def _ltx2(_: str) -> nn.Module:
    """Halves of each head are written to in place; the norm is of all heads."""
    from diffusers.models.transformers.transformer_ltx2 import LTX2Attention

    return LTX2Attention(48, heads=3, kv_heads=3, dim_head=16, rope_type="split")


def _ltx2_inputs() -> dict[str, Any]:
    angles = normal(2, 3, 7, 8)
    return {"hidden_states": normal(2, 7, 48), "query_rotary_emb": (angles.cos(), angles.sin())}


CASES: dict[str, ModelCase] = {
    **{name: models.CASES[name] for name in FROM_THE_ZOO},
    "convnext": ModelCase("convnext", seeded(_convnext), _convnext_inputs, SDPA_ONLY, 0, itself),
    "gemma": ModelCase("gemma", seeded(_gemma), text, SDPA_ONLY, LAYERS, logits),
}

ROTATED: dict[str, tuple[ModelCase, int]] = {
    **{n: (CASES[n], 2 * LAYERS) for n in ("llama", "gemma", "gemma3", "qwen3", "flux", "wan")},
    "cogvideox": (CASES["cogvideox"], 2 * LAYERS),
    "kandinsky": (
        ModelCase("kandinsky", seeded(_kandinsky), _kandinsky_inputs, SDPA_ONLY, 1, itself),
        2,
    ),
    "ltx2": (ModelCase("ltx2", seeded(_ltx2), _ltx2_inputs, SDPA_ONLY, 1, itself), 2),
    **{
        name: (ModelCase(name, seeded(build), text, SDPA_ONLY, LAYERS, logits), 2 * LAYERS)
        for name, build in {"glm": _glm, "neox": _neox, "phi": _phi}.items()
    },
}


@contextmanager
def normalisations(module: nn.Module) -> Generator[list[str]]:
    """Collects the names of the modules in it that normalise, each time that one runs.

    An `AdaLayerNorm` holds a `LayerNorm`, and is counted as that.
    """
    ran: list[str] = []
    hooks = [
        each.register_forward_hook(lambda norm, *_: ran.append(type(norm).__name__))
        for each in module.modules()
        if [m for m in each.modules() if _normalises(m)] == [each]
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def _normalises(module: nn.Module) -> bool:
    known = isinstance(module, (nn.LayerNorm, nn.GroupNorm))
    return known or type(module).__name__.endswith("Norm")
