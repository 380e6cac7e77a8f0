"""What one entry of the model zoo is, and the few helpers its builders share.

The sizes below are pairwise different wherever a configuration allows it, so that an exchanged axis
changes a shape or a number instead of going unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 3
SEQ = 19
VOCAB = 97
HEADS = 4  # multi-head models: HEADS query, key and value heads
GQA_HEADS = 8  # grouped models: 8 query heads on 2 key heads
KV_HEADS = 2
HEAD_DIM = 16
HIDDEN = HEADS * HEAD_DIM
FFN = 80
LAYERS = 2

EAGER_ONLY = ("eager",)
SDPA_ONLY = ("sdpa",)
BOTH = ("eager", "sdpa")

Builder = Callable[[str], nn.Module]
Inputs = Callable[[], dict[str, Any]]

_QUERY_KEY = re.compile(
    r"(?:^|[._])(?:to_|add_)?(?:q|k|query|key|qkv|Wqkv|query_key_value|c_attn|in_proj|pos_key|"
    r"pos_query|q_lin|k_lin|q_a|q_b|kv_a|kv_b)(?:_proj|_proj_with_mqa)?$"
)


@dataclass(frozen=True)
class ModelCase:
    """One tiny random-weight model and how to call it.

    Attributes:
        name: Key in the registry.
        build: Makes the model from the name of an attention implementation, in eval mode; the same
            parameters on every call, whatever the implementation.
        inputs: Makes the keyword arguments of `forward`, the same on every call.
        implementations: What `build` accepts. "eager" spells attention out, "sdpa" calls
            `scaled_dot_product_attention` (in diffusers: the legacy and the default processor).
        attentions: Attentions that one forward runs.
        mixtures: Mixtures of experts that one forward runs, in graphs that Dynamo captures whole.
        output: The floating point tensors of the result, for comparisons.
        one_graph: Dynamo makes a single graph of the forward.
        forms_agree: All implementations compute the same outputs.
        random_in_training: The training forward draws random numbers that no option turns off.
    """

    name: str
    build: Builder
    inputs: Inputs
    implementations: tuple[str, ...]
    attentions: int
    output: Callable[[Any], list[Tensor]]
    one_graph: bool = True
    forms_agree: bool = True
    random_in_training: bool = False
    mixtures: int = 0


class Outputs(nn.Module):
    """A model that returns the tensors that are compared."""

    def __init__(self, case: ModelCase, model: nn.Module) -> None:
        super().__init__()
        self.case, self.model = case, model

    def forward(self, **inputs: Any) -> list[Tensor]:
        return self.case.output(self.model(**inputs))


def logits(out: Any) -> list[Tensor]:
    """The scores over the vocabulary, of a language model."""
    return [out.logits]


def hidden(out: Any) -> list[Tensor]:
    """The last hidden state, of an encoder."""
    return [out.last_hidden_state]


def sample(out: Any) -> list[Tensor]:
    """The prediction, of a diffusion model."""
    return [out.sample]


def itself(out: Any) -> list[Tensor]:
    """A forward that returns one tensor."""
    return [out]


def seeded(build: Callable[[str], nn.Module], gain: float = 1.5, seed: int = 0) -> Builder:
    """A builder that leaves the global generator alone; its model is sharpened and in eval mode."""

    def run(implementation: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return sharpen(build(implementation), gain).eval()

    return run


def generator(seed: int = 1) -> torch.Generator:
    """A fresh CPU generator, so that inputs do not depend on what ran before."""
    return torch.Generator().manual_seed(seed)


def tokens(*shape: int, seed: int = 1, low: int = 3) -> Tensor:
    """Token ids in [low, VOCAB), which avoids the usual padding, begin and end ids."""
    return torch.randint(low, VOCAB, shape or (BATCH, SEQ), generator=generator(seed))


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal values."""
    return torch.randn(shape, generator=generator(seed))


def padding(left: bool = False) -> Tensor:
    """(BATCH, SEQ) attention mask, 1 to keep: every row keeps another number of tokens."""
    keep = torch.arange(SEQ)[None] < torch.tensor([SEQ, SEQ - 6, SEQ - 11])[:, None]
    return (keep.flip(1) if left else keep).long()


@torch.no_grad()
def sharpen(model: nn.Module, gain: float) -> nn.Module:
    """Redraws every parameter so that no part of the model is near to doing nothing.

    Weights get standard deviation `1 / sqrt(fan_in)`, times `gain` where they make queries or keys,
    so that scores have a deviation of about `gain ** 2` and a wrong scale or mask shows. Vectors
    (norm weights, biases, sinks) move by a tenth, which lifts those that start at exactly 0 or 1.
    """
    done: set[int] = set()
    for name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in done or not parameter.is_floating_point():
                continue
            done.add(id(parameter))
            strength = gain if _QUERY_KEY.search(name) or "rel_pos" in parameter_name else 1.0
            _redraw(module, parameter, strength)
    return model


def _redraw(module: nn.Module, parameter: nn.Parameter, strength: float) -> None:
    if parameter.dim() < 2 or parameter.shape[-2:] == (1, 1):  # the last: a learned scale per head
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return
    if isinstance(module, nn.Embedding):
        fan_in = 1
    elif isinstance(module, nn.modules.conv._ConvNd):
        fan_in = parameter[0].numel()
    elif type(module).__name__ == "Conv1D":  # GPT-2's transposed linear
        fan_in = parameter.shape[0]
    else:
        fan_in = parameter.shape[-1]
    parameter.normal_(std=strength / fan_in**0.5)
