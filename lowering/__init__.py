"""What to put there. One lowering is one way to compute what a spec says.

`candidates(spec)` lists the lowerings of a spec's kind in the order of preference. A lowering
either prepares an emission or answers with the reason why it cannot.
"""

from __future__ import annotations

from . import activation, attention, loss, moe, norm  # register their lowerings
from .base import Context, Emission, Lowering, Refusal, candidates, register_lowering

__all__ = [
    "Context",
    "Emission",
    "Lowering",
    "Refusal",
    "activation",
    "attention",
    "candidates",
    "loss",
    "moe",
    "norm",
    "register_lowering",
]
