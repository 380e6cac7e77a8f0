"""The forward and the backward of a norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fuser.torch_private import known_true

from .problem import Problem, Statistics


def forward(of: Problem, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results, and what the backward starts from: see `operator`."""
    y, x, found = of.result(of.spec.dtype), of.result(of.spec.kept), of.statistics(keep=keep)
    if not of.empty:
        of.forward(y, x, found, keep=keep)
    return y, x, found.means, found.lows, found.scales


def backward(
    of: Problem, grads: Sequence[Tensor], found: Statistics, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of the operands where `needs` says so."""
    wanted = [i for i, n in enumerate(needs) if n]
    if of.empty or not wanted:
        return [torch.zeros_like(of.captured[i]) for i in wanted]
    if known_true(found.scales.numel() == 0):  # nobody kept them
        found = Statistics(*forward(of, True)[2:])
    grad, *others = grads
    return of.backward(grad, others[0] if others else None, found, wanted)
