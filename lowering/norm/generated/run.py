"""The forward and the backward of a norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fuser.torch_private import known_true

from .problem import Problem, Statistics


def forward(of: Problem, keep: bool) -> list[Tensor]:
    """The results, and what the backward starts from: see `operator`."""
    results, found = of.results(), of.statistics(keep=keep)
    if not of.empty:
        of.forward(results, found, keep=keep)
    return [*of.typed(results), *found.tensors]


def backward(
    of: Problem, grads: Mapping[int, Tensor], found: Statistics, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of the operands where `needs` says so; `grads` are those of results, by number."""
    wanted = [i for i, n in enumerate(needs) if n]
    if of.empty or not wanted:
        return [torch.zeros_like(of.captured[i]) for i in wanted]
    if not of.spec.bare and known_true(found.scales.numel() == 0):  # nobody kept them
        found = Statistics(*forward(of, True)[-len(found.tensors) :])
    grad_x = grads.get(len(of.spec.dtypes))
    return of.backward({i: g for i, g in grads.items() if i < len(of.spec.dtypes)}, grad_x, found,
                       wanted)  # fmt: skip
