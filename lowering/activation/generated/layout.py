"""What the kernels of an activation are specialised on, and which activations have some."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from fuser.specs import ActivationSpec


class Sum(Enum):
    """What a kernel leaves of the gradient of an operand."""

    EACH = "each"
    """Every element's, in the dtype of the operand."""
    ROWS = "rows"
    """`(parts of the operand, blocks of columns, rows)` in fp32."""
    COLUMNS = "columns"
    """By program, `(parts of the operand, leading dimensions, programs, columns)` in fp32."""
    TILES = "tiles"
    """The same, of blocks of columns."""


@dataclass(frozen=True)
class Layout:
    """Everything that the text of the kernels depends on.

    Attributes:
        dtypes: of the operands.
        lead, rest: how many dimensions of rows there are; where sums are left, each program has one
            position of the former.
        columns: their number, None where it is an argument.
        varies: along which of all dimensions, the columns last, a tensor has more than one element,
            by its name.
        wide: positions in a row are counted in 64 bits.
        paired: tensors of two parts whose columns take turns in memory: both are read, or written,
            at once.
    """

    spec: ActivationSpec
    dtypes: tuple[torch.dtype, ...]
    lead: int
    rest: int
    columns: int | None
    varies: tuple[tuple[str, tuple[bool, ...]], ...]
    wide: bool
    paired: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Dimensions of rows."""
        return self.lead + self.rest

    def of(self, name: str) -> tuple[bool, ...]:
        """Along which dimensions a tensor varies."""
        return dict(self.varies)[name]

    def along_columns(self, name: str) -> bool:
        return self.of(name)[-1]

    def along_rows(self, name: str) -> bool:
        """Whether a tensor varies along the rows of a tile."""
        return any(self.of(name)[self.lead : self.rows])

    def sum_of(self, name: str) -> Sum:
        """How the gradient of an operand is added up."""
        own = self.of(name)
        if all(own[:-1]) and (own[-1] or self.columns == 1):
            return Sum.EACH
        if own[-1]:
            return Sum.COLUMNS
        return Sum.ROWS if self.along_rows(name) else Sum.TILES
