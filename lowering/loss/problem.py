"""Operands of a linear layer's cross-entropy, and what the spec says of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fuser.graph.program import Program
from fuser.specs import LinearCrossEntropySpec, Reduction


@lru_cache(maxsize=1024)
def spec_of(text: str) -> LinearCrossEntropySpec:
    """The spec that an operator's argument describes."""
    return LinearCrossEntropySpec.from_text(text)


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """In which a sum of numbers of this dtype is added up."""
    return torch.promote_types(dtype, torch.float32)


def problem_of(operands: Sequence[Any]) -> Problem:
    """The problem that an operator is given."""
    *tensors, spec = operands
    return Problem(spec_of(spec), *tensors)


@lru_cache(maxsize=1024)
def is_cast(program: Program) -> bool:
    """Whether a program does nothing but cast its input."""
    steps = [n for n in program.graph.nodes if n.op not in ("placeholder", "output")]
    return program.inputs == ["z"] and all(n.target == "to" for n in steps)


@dataclass(frozen=True)
class Counted:
    """Factors of rows, `(N,)`, and the number that their sum is divided by."""

    factors: Tensor
    number: Tensor | int

    def sum(self, rows: Tensor) -> Tensor:
        """Of what rows have, `(N,)`; NaN where there is none to take a mean of."""
        return (self.factors * rows).sum(dtype=torch.float64) / self.number

    def each(self, grad: Tensor | float) -> Tensor:
        """What one more of a row adds, `(N,)`; zero for rows that do not count."""
        found = self.factors * (grad / self.number)
        return torch.where(self.factors == 0, 0.0, found).to(self.factors.dtype)


@dataclass(frozen=True)
class Problem:
    """A cross-entropy; see `fuser.specs.LinearCrossEntropySpec` for the operands.

    Attributes:
        weights, squares: `w` and `u`, `(N,)` or of one element; None: ones.
    """

    spec: LinearCrossEntropySpec
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    weights: Tensor | None
    squares: Tensor | None
    captured: Sequence[Tensor]

    @property
    def rows(self) -> int:
        return self.x.shape[0]

    @property
    def classes(self) -> int:
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """In which losses of rows are computed."""
        return accumulating(self.x.dtype)

    def after(self, z: Tensor, captured: Sequence[Tensor]) -> Tensor:
        """Logits of a product, or of some of its rows."""
        inputs = {f"c{i}": c for i, c in enumerate(captured)}
        named = {"z": z, **inputs}
        return self.spec.after(**{name: named[name] for name in self.spec.after.inputs})

    @property
    def kept(self) -> Tensor:
        """`(N,)`: whether the target counts."""
        ignored = self.spec.ignore_index
        if ignored is None:
            return torch.ones_like(self.target, dtype=torch.bool)
        return self.target != ignored

    def require_classes(self) -> None:
        """Elsewhere than on a CPU it is the device that notices.

        Raises:
            IndexError: a target that counts is no class; as of `gather` a RuntimeError, where none
                is ever ignored.
        """
        target = self.target
        if target.device.type != "cpu":
            return
        wrong = target[self.kept & ((target < 0) | (target >= self.classes))]
        if not wrong.numel():
            return
        first, size = int(wrong[0]), self.classes
        if self.spec.ignore_index is None:
            raise RuntimeError(f"index {first} is out of bounds for a dimension of size {size}")
        raise IndexError(f"Target {first} is out of bounds.")

    def counts(self) -> tuple[Counted, Counted | None]:
        """What every `nll_n` and every `lse_n²` counts; ignored rows have no loss."""
        of = self.spec
        loss = torch.where(self.kept, self._spread(self.weights, of.scale), 0.0)
        first = Counted(loss, self._number(of.reduction))
        if not of.square:
            return first, None
        squares = self._spread(self.squares, of.square)
        return first, Counted(squares, self._number(of.square_reduction))

    def _number(self, reduction: Reduction) -> Tensor | int:
        if reduction is Reduction.MEAN:
            return self.kept.sum()
        return self.rows if reduction is Reduction.MEAN_OF_ALL else 1

    def _spread(self, factor: Tensor | None, scale: float) -> Tensor:
        start = torch.full((self.rows,), scale, dtype=self.dtype, device=self.x.device)
        return start if factor is None else (start * factor).to(self.dtype)
