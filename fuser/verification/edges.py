"""Where two correct programs need not agree, and by how much.

A choice among equal scores, a number half-way between two whole ones, a sum that cancels: there
they differ by more than their errors elsewhere, and float64 says nothing about which is right. Such
elements are found by trying: the inputs, and the weights of the outputs, are changed by a rounding,
many times.

Where all elements cancel, that finds nothing: with equal rows of keys and of values the gradients
of queries are zero, and stay zero. What is lost is of the size that values have where they do not
cancel, and that is found by changing the inputs by half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..precision import Result, is_fractional, largest

DRAWS = 16
"""How often: one of 65,000 ties between two is broken in the same way each time."""
SEED = 20
MARGIN = 4.0
"""By how many times the largest move of so few draws an element may be off."""


def moves(
    run: Callable[[Sequence[Tensor]], Result],
    operands: Sequence[Tensor],
    exact: Result,
    unit: float,
) -> list[Tensor]:
    """For each output and gradient, what its elements are allowed to be off because of that.

    Args:
        run: the original in float64, at other operands.
        operands: in float64, those of `exact`.
        exact: what `run` gives for them.
        unit: a rounding, relative to a number.
    """
    values = [*exact.outputs, *exact.gradients]
    found = [torch.zeros(x.shape, dtype=torch.float64, device=x.device) for x in values]
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(DRAWS):
        other = run([_changed(x, unit, generator) for x in operands])
        for most, x, y in zip(found, values, [*other.outputs, *other.gradients], strict=True):
            torch.maximum(most, _distance(x, y), out=most)
    return [MARGIN * most for most in found]


def sizes(run: Callable[[Sequence[Tensor]], Result], operands: Sequence[Tensor]) -> list[float]:
    """For each output and gradient, the largest number where inputs are unlike each other."""
    other = run([_changed(x, 1.0, torch.Generator().manual_seed(SEED)) for x in operands])
    return [largest(x) for x in (*other.outputs, *other.gradients)]


def _changed(x: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    if not is_fractional(x):
        return x
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    changed = (x.detach() * (1 + unit * (2 * noise - 1))).to(x.dtype)
    return changed.requires_grad_(x.requires_grad)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Infinite where one alone is finite."""
    if not is_fractional(x):
        return (x != y).double()
    distance = torch.where(x == y, 0.0, (x - y).abs().double())
    return torch.where(x.isnan() & y.isnan(), 0.0, distance.nan_to_num(torch.inf, torch.inf))
