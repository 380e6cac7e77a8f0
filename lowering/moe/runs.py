"""Rows in the order of their experts, and products with the tensors of those, one after the other.

All at once, padded to the rows of the expert that has the most, they take longer on a CPU, however
few rows there are: docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Targets: TypeAlias = "Sequence[Tensor | None]"
"""Gradients to be filled in, where they are wanted."""


@dataclass(frozen=True)
class Runs:
    """Rows of each expert, one after the other; behind them those of none.

    Attributes:
        ends: by expert, the place after its last row.
    """

    ends: Sequence[int]

    @staticmethod
    def of(ends: Tensor, rows: int) -> Runs:
        """Those of so many rows; where ends decrease, a run may have rows of one before it, of
        which it replaces what that gave."""
        return Runs([min(max(end, 0), rows) for end in ends.tolist()])

    @property
    def count(self) -> int:
        """Rows of all experts."""
        return max(self.ends)

    def each(self) -> Iterator[tuple[int, slice]]:
        """Experts that have rows, and their places."""
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end

    # -- products; the tensors of all experts are one, or one each

    def times(self, rows: Tensor, matrices: Sequence[Tensor], *, turned: bool) -> Tensor:
        """Rows times the matrices of their experts.

        Args:
            rows: `(R, in)`, by place.
            matrices: one `(E, in, out)`, or `(in, out)` each.
            turned: of matrices `(out, in)`.

        Returns:
            `(R, out)`, with zeros for rows of no expert.
        """
        matrices = [m.mT for m in matrices] if turned else matrices
        out = rows.new_empty(len(rows), matrices[0].shape[-1])
        out[self.count :] = 0
        for expert, run in self.each():
            torch.mm(rows[run], _own(matrices, expert).to(rows.dtype), out=out[run])
        return out

    def add(self, rows: Tensor, biases: Sequence[Tensor]) -> None:
        """Adds what experts add to a product, one `(E, out)` or `(out,)` each, to its rows."""
        for expert, run in self.each():
            rows[run] += _own(biases, expert).to(rows.dtype)

    def outer(self, a: Tensor, b: Tensor, targets: Targets) -> None:
        """Fills `targets`, one `(E, m, n)` or `(m, n)` each, with aᵀb over each expert's rows."""
        for target, run in self._filled(targets):
            if target.dtype is a.dtype:
                torch.mm(a[run].t(), b[run], out=target)
            else:
                target.copy_(a[run].t() @ b[run])

    def total(self, rows: Tensor, targets: Targets) -> None:
        """Fills `targets`, one `(E, m)` or `(m,)` each, with sums over each expert's rows."""
        for target, run in self._filled(targets):
            target.copy_(rows[run].sum(0))

    def _filled(self, targets: Targets) -> Iterator[tuple[Tensor, slice]]:
        """Targets of experts that have rows; the others become zero."""
        wanted = [t for t in targets if t is not None]
        runs = dict(self.each())
        for expert in range(len(self.ends) if wanted else 0):
            target = _own(wanted, expert) if len(targets) == 1 else targets[expert]
            if target is not None and expert in runs:
                yield target, runs[expert]
            elif target is not None:
                target.zero_()


def _own(tensors: Sequence[Tensor], expert: int) -> Tensor:
    """What one expert has."""
    return tensors[0][expert] if len(tensors) == 1 else tensors[expert]
