"""Whole transformers models with random weights: steps of 50 to 500 ms on two cores.

Built from their configs in their eager attention form; the encoder or decoder alone, without a
language-model head, so that attention and not one big matmul is what is measured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.cases import Case, Workload, as_double

VOCABULARY = 1024
"""Small: the embedding is a look-up, its size only costs memory."""


@dataclass(frozen=True)
class Size:
    """Batch, sequence length, layers, hidden size, heads (head dimension = hidden // heads)."""

    batch: int
    sequence: int
    layers: int
    hidden: int
    heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def bloom(size: Size) -> nn.Module:
    """BLOOM: ALiBi inside baddbmm, an additive mask, LayerNorm, GELU."""
    config = transformers.BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        n_layer=size.layers,
        n_head=size.heads,
        use_cache=False,
        attn_implementation="eager",
    )
    return transformers.BloomModel(config)


def t5(size: Size) -> nn.Module:
    """T5's encoder: a learned relative bias shared by the layers, no scale, RMSNorm."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=size.hidden,
        d_kv=size.head_dim,
        d_ff=4 * size.hidden,
        num_layers=size.layers,
        num_heads=size.heads,
        use_cache=False,
        attn_implementation="eager",
    )
    return transformers.T5EncoderModel(config)


def gemma2(size: Size) -> nn.Module:
    """Gemma 2: grouped queries, softcap 50, every other layer with a sliding window."""
    config = transformers.Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        head_dim=size.head_dim,
        query_pre_attn_scalar=size.head_dim,
        sliding_window=size.sequence // 4,
        use_cache=False,
        attn_implementation="eager",
    )
    return transformers.Gemma2Model(config)


def gpt_oss(size: Size) -> nn.Module:
    """GPT-OSS: grouped queries, attention sinks, sliding windows, a mixture of experts."""
    config = transformers.GptOssConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 4,
        head_dim=size.head_dim,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=size.sequence // 4,
        use_cache=False,
        attn_implementation="eager",
    )
    return transformers.GptOssModel(config)


@dataclass(frozen=True)
class Model:
    """A model and its size; `trains` also measures it forward and backward."""

    make: Callable[[Size], nn.Module]
    size: Size
    trains: bool = False


MODELS: dict[str, Model] = {
    "bloom": Model(bloom, Size(1, 1024, 3, 384, 8), trains=True),
    "t5": Model(t5, Size(1, 1024, 3, 384, 8)),
    "gemma2": Model(gemma2, Size(1, 1024, 2, 384, 8), trains=True),
    "gpt_oss": Model(gpt_oss, Size(1, 1024, 2, 256, 8)),
}


def step_of(model: nn.Module) -> Callable[..., torch.Tensor]:
    """The plain function of the token ids that is compiled."""

    def step(input_ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=input_ids, use_cache=False).last_hidden_state

    return step


def build(spec: Model, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random weights and tokens; dropout off in both modes, so that errors can be compared."""
    model = spec.make(spec.size).to(device, dtype).eval()
    shape = (spec.size.batch, spec.size.sequence)
    ids = torch.randint(0, VOCABULARY, shape, device=device)
    case = Case(step_of(model), (ids,))
    if mode == "full":
        cotangent = torch.randn(*shape, spec.size.hidden).to(device, dtype)
        case = replace(case, cotangents=(cotangent,), leaves=tuple(model.parameters()))
    return replace(case, double=lambda: _in_double(case, model))


def _in_double(case: Case, model: nn.Module) -> Case:
    twin = copy.deepcopy(model).double()
    if isinstance(twin, transformers.GptOssModel):
        twin.set_experts_implementation("eager")  # grouped_mm takes no fp64
    changes: dict[str, Any] = {"fn": step_of(twin), "double": None}
    if case.cotangents:
        wide = tuple(map(as_double, case.cotangents))
        changes |= {"cotangents": wide, "leaves": tuple(twin.parameters())}
    return replace(case, **changes)


def workloads(quick: bool) -> list[Workload]:
    """All models; one layer of 64 positions where `quick`."""

    def one(name: str, spec: Model) -> Workload:
        size = spec.size
        if quick:
            # Two layers stay two: Gemma 2 and GPT-OSS alternate full and sliding ones.
            size = replace(size, sequence=64, hidden=128, layers=min(size.layers, 2))

        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(replace(spec, size=size), dtype, device, mode)

        modes = ("forward", "full") if spec.trains else ("forward",)
        config = {"B": size.batch, "H": size.heads, "hidden": size.hidden, "layers": size.layers}
        return Workload("models", name, case, modes, ("S", size.sequence), config)

    return [one(name, spec) for name, spec in MODELS.items()]
