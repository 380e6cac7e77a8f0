"""The experts of transformers' models, through the library's own interface.

`experts_implementation="eager"` is a loop over the experts that were hit, whose number depends on
data: Dynamo breaks the graph there. "fuser" is a loop over all experts. It is registered with the
library, and chosen for the modules of one model: each of them is given a view of its configuration
that says "fuser" where the configuration says "eager", and everything else as it is.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "fuser"


class Configuration:
    """A configuration as the experts of one model see it.

    Attributes:
        seen: the configuration that it is a view of.
    """

    def __init__(self, seen: Any) -> None:
        self.seen = seen

    @property
    def _experts_implementation(self) -> Any:
        found = self.seen._experts_implementation
        return NAME if found == "eager" else found

    def __getattr__(self, name: str) -> Any:
        if name in ("seen", "__setstate__"):  # while it is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.seen, name)


def use_experts(model: nn.Module) -> None:
    """Choose "fuser" for all experts in a model that can choose."""
    library = sys.modules.get("transformers.integrations.moe")
    known = getattr(library, "ALL_EXPERTS_FUNCTIONS", None)
    if known is None:
        return
    for module in model.modules():
        own = getattr(module, "config", None)
        if own is None or isinstance(own, Configuration) or not _chooses(module, own):
            continue
        known.register(NAME, experts)
        module.config = Configuration(own)  # type: ignore[assignment]


def _chooses(module: nn.Module, config: Any) -> bool:
    """Whether a module runs its experts by the interface, laid out as that says."""
    told = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")
    original = getattr(type(module).forward, "__wrapped__", None)
    known = original is not None and hasattr(config, "_experts_implementation")
    return known and all(hasattr(module, name) for name in told)


def experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """All experts one after the other, each on the tokens that chose it.

    Args:
        self: the module with the experts' parameters.
        hidden_states: `(T, D)`.
        top_k_index, top_k_weights: `(T, K)`.

    Returns:
        `(T, D)`.
    """
    sharded = getattr(self, "_is_expert_parallel", False)
    if not torch.compiler.is_compiling() or sharded or hidden_states.ndim != 2:
        original = type(self).forward.__wrapped__
        return original(self, hidden_states, top_k_index, top_k_weights)
    out = torch.zeros_like(hidden_states)
    first = "gate_up_proj" if self.has_gate else "up_proj"
    for expert in range(self.num_experts):
        token, choice = torch.where(top_k_index == expert)
        hidden = _product(self, first, expert, hidden_states[token])
        hidden = self._apply_gate(hidden) if self.has_gate else self.act_fn(hidden)
        rows = _product(self, "down_proj", expert, hidden)
        if getattr(self, "has_post_expert_norm", False):
            rows = self.post_expert_norm(rows)
        rows = rows * top_k_weights[token, choice, None]
        out.index_add_(0, token, rows.to(out.dtype))
    return out


def _product(module: Any, name: str, expert: int, rows: Tensor) -> Tensor:
    matrix = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    if module.is_transposed:
        product = rows @ matrix
        return product if bias is None else product + bias
    return F.linear(rows, matrix, bias)
