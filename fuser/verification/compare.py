"""Run a region, its replacement, and the original in float64, and compare them.

A value of the replacement is wrong where its error is more than `FACTOR` times the largest error of
the original, and more than some roundings of the value's own largest element (those of
`check_pattern`), and more than the value moves by itself, or where nothing cancels (see `edges`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import first_sentence
from ..events import Compared
from ..precision import (
    DoublePrecision,
    Result,
    difference,
    double,
    is_finite,
    is_fractional,
    largest,
    run,
)
from ..rehearsal import casting
from .edges import SEED, moves, sizes

FACTOR = 3.0
"""How many times the original's error is allowed, as in `fuser.testing.check_pattern`."""
Function = Callable[..., Any]


class ReplacementError(Exception):
    """The replacement raises something where the original does not; the message says what."""


class NothingFiniteError(Exception):
    """There is nothing to compare; the message says why."""


@dataclass(frozen=True)
class Conditions:
    """Under which a region runs.

    Attributes:
        device: of its results.
        training: whether gradients are taken.
        autocast: the dtype that autocast chooses; None where it is off.
        writes: the region writes to what it reads.
        drops: the replacement leaves out what is multiplied by zero: with it, numbers that are not
            finite, and the derivative by that zero, which stays one.
        unordered: of each row of a result, elements may have any order: that of the whole numbers
            in one result is that of the others.
        unit: the coarsest rounding of the region, relative to a number.
    """

    device: torch.device
    training: bool = False
    autocast: torch.dtype | None = None
    writes: bool = False
    drops: bool = False
    unordered: bool = False
    unit: float = 2.0**-24


def judge(
    original: Function,
    replacement: Function,
    operands: Sequence[Tensor],
    conditions: Conditions,
    names: Sequence[str] = (),
) -> tuple[Compared, ...]:
    """Compare the outputs of two functions and the gradients of what they read.

    Args:
        original, replacement: take the operands.
        operands: those that are differentiated require gradients.
        conditions: under which both run.
        names: of the operands, for the report.

    Raises:
        ReplacementError: the replacement raises something.
        NothingFiniteError: no output has a finite number.
        Exception: whatever the original raises, in float64 too; or there is no memory left.
    """
    theirs = _run(original, operands, conditions)
    try:
        ours = _run(replacement, operands, conditions)
    except Exception as error:
        if _is_of_memory(error):
            raise
        raise ReplacementError(first_sentence(error)) from error
    wide = double(operands)
    exact = _run_exactly(original, wide, conditions)
    if not any(bool(is_finite(x).any()) or not x.numel() for x in exact.outputs):
        raise NothingFiniteError("none of the numbers that it gives is finite")
    found = _compared(ours, theirs, exact, conditions, _titles(theirs, operands, names))
    if not any(value.problem for value in found):
        return found

    def again(xs: Sequence[Tensor]) -> Result:
        return _run_exactly(original, xs, conditions)

    names = [value.name for value in found]
    allowed = moves(again, wide, exact, conditions.unit)
    return _compared(ours, theirs, exact, conditions, names, allowed, sizes(again, wide))


def _is_of_memory(error: Exception) -> bool:
    """Whether memory is full, which is not the replacement's fault alone."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def _run(function: Function, operands: Sequence[Tensor], conditions: Conditions) -> Result:
    given = [x.detach().requires_grad_(x.requires_grad) for x in operands]
    with torch.set_grad_enabled(conditions.training):
        with casting(conditions.device, conditions.autocast):
            return _kept(run(_arranged(function, conditions), given, _weights), given, conditions)


def _run_exactly(function: Function, wide: Sequence[Tensor], conditions: Conditions) -> Result:
    with torch.set_grad_enabled(conditions.training), DoublePrecision():
        return _kept(run(_arranged(function, conditions), wide, _weights), wide, conditions)


def _kept(result: Result, operands: Sequence[Tensor], conditions: Conditions) -> Result:
    """What the replacement has, too."""
    if not conditions.drops:
        return result
    wanted = [x for x in operands if x.requires_grad][: len(result.gradients)]
    pairs = zip(result.gradients, wanted, strict=True)
    return Result(result.outputs, [g.masked_fill(x.detach() == 0, 0) for g, x in pairs])


def _weights(output: Tensor) -> Tensor:
    """Of an output, the same in every run: numbers that all dtypes have, and that cancel nowhere
    for certain."""
    generator = torch.Generator().manual_seed(SEED)
    numbers = torch.randint(1, 16, output.shape, generator=generator).sub_(5).to(output.device)
    return (numbers / 8).to(output.dtype)


def _arranged(function: Function, conditions: Conditions) -> Function:
    """A function that leaves its arguments as they are, and puts choices in one order."""

    def call(*operands: Tensor) -> Any:
        given = [x.clone() for x in operands] if conditions.writes else operands
        results = function(*given)
        return _ordered(results) if conditions.unordered else results

    return call


def _ordered(results: Sequence[Tensor]) -> list[Tensor]:
    chosen = next((x for x in results if not is_fractional(x)), None)
    if chosen is None:
        return list(results)
    order = chosen.argsort(-1)
    return [x.gather(-1, order) if x.shape == chosen.shape else x for x in results]


def _titles(result: Result, operands: Sequence[Tensor], names: Sequence[str]) -> list[str]:
    labels = [names[i] if names else f"x{i}" for i, x in enumerate(operands) if x.requires_grad]
    outputs = [f"output {i}" for i in range(len(result.outputs))]
    return [*outputs, *(f"gradient of {name}" for name in labels[: len(result.gradients)])]


def _compared(
    ours: Result,
    theirs: Result,
    exact: Result,
    conditions: Conditions,
    titles: Sequence[str],
    allowed: Sequence[Tensor] | None = None,
    scales: Sequence[float] | None = None,
) -> tuple[Compared, ...]:
    columns = zip(
        titles,
        [*ours.outputs, *(ours.gradients or map(torch.zeros_like, theirs.gradients))],
        [*theirs.outputs, *theirs.gradients],
        [*exact.outputs, *exact.gradients],
        allowed or [None] * len(titles),
        scales or [0.0] * len(titles),
        strict=True,
    )
    found: list[Compared] = []
    for title, mine, other, truth, most, scale in columns:
        excused = is_finite(truth)
        excused = torch.ones_like(excused) if conditions.drops else excused
        scale = max(scale, largest(truth))
        d = difference(mine, other, truth, FACTOR, scale, moves=most, excused=excused)
        problem = d.problem.format("the original")
        found.append(Compared(title, d.error, d.own, d.allowed, d.worst, problem))
    return tuple(found)
