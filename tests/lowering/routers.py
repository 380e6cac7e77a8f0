"""Routers with random operands, as specs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fuser.graph.program import Program
from fuser.specs import Groups, RouterSpec
from tests.lowering.generated import DEVICE, program


def router(**changes: Any) -> RouterSpec:
    """A softmax over experts, two of them, renormalised in fp32; or changed."""
    fields: dict[str, Any] = {
        "choices": 2, "captured": 0, "before": lambda x: x, "softmax": torch.float32,
        "compared": lambda s: s, "groups": None, "taken": lambda s: s, "top_softmax": None,
        "total": torch.float32, "weights": lambda g, t: g / t, "dtype": torch.float32,
    }  # fmt: skip
    fields |= changes
    programs = ("before", "compared", "taken", "weights")
    made: dict[str, Program] = {name: program(fields[name]) for name in programs}
    return RouterSpec(**{**fields, **made})


def limited(groups: Groups, choices: int = 2, **changes: Any) -> RouterSpec:
    """By groups, with a correction."""
    return router(
        choices=choices, captured=1, softmax=None, groups=groups, taken=lambda x: torch.sigmoid(x),
        compared=lambda x, b0: torch.sigmoid(x) + b0, **changes,
    )  # fmt: skip


KINDS: dict[str, tuple[RouterSpec, int, torch.dtype]] = {
    "renormalised": (router(), 8, torch.bfloat16),
    "softmax_of_choices": (
        router(
            softmax=None, compared=lambda x: x, taken=lambda x: x, top_softmax=torch.bfloat16,
            total=None, weights=lambda g: g, dtype=torch.bfloat16, choices=3,
        ), 5, torch.bfloat16,
    ),
    "groups": (limited(Groups(3, 2, 2, -math.inf)), 9, torch.float32),
}  # fmt: skip
"""With how many experts, and the dtype of logits."""


def operands(spec: RouterSpec, experts: int, dtype: torch.dtype, tokens: int = 11) -> Any:
    """Logits that require a gradient, and what is captured."""
    generator = torch.Generator().manual_seed(experts + tokens)
    logits = torch.randn(tokens, experts, generator=generator).to(DEVICE, dtype)
    captured = [torch.rand(experts, generator=generator).to(DEVICE) for _ in range(spec.captured)]
    return logits.requires_grad_(), captured


def lowest_first(compared: Tensor, count: int) -> Tensor:
    """The largest in order, NaN before all; of equals the lowest index first."""
    return torch.sort(compared, stable=True, descending=True).indices[:, :count]
