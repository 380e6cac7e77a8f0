"""What the kernels of a mixture are specialised on, and which mixtures have one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fuser.specs import TOKEN, Columns, MoeSpec

from ...triton.kernel import NoKernel

LARGEST = 2**31
"""Elements of one expert's matrix stay below it: they are counted in 32 bits."""


@dataclass(frozen=True)
class Column:
    """Rows `start`, `start + step`, ... of a first product's matrix, of which an input of the
    activation is made."""

    product: int
    start: int
    step: int


@dataclass(frozen=True)
class Layout:
    """Everything that the text of the kernels depends on.

    Attributes:
        tokens, weights: dtypes of x and of the weights of choices.
        features: of a token.
        hidden: columns of every input of the activation.
        sizes: rows of each product's matrix; those of the last are features of the result.
        columns: what the inputs of the activation are made of.
        matrices, biases: dtypes, product by product; None where nothing is added.
        along: of each product, what lies beside each other in memory, in rows at multiples of 16
            bytes: `i`, a row of a matrix; `o`, a column of it; nothing where neither is known.
        precision: of products in fp32.
        interpreted: the kernels run in Triton's interpreter.
    """

    spec: MoeSpec
    tokens: torch.dtype
    weights: torch.dtype
    features: int
    hidden: int
    sizes: tuple[int, ...]
    columns: tuple[Column, ...]
    matrices: tuple[torch.dtype, ...]
    biases: tuple[torch.dtype | None, ...]
    along: tuple[str, ...]
    precision: str = "ieee"
    interpreted: bool = False

    @property
    def width(self) -> int:
        """Features of the result."""
        return self.sizes[-1]

    @property
    def last(self) -> int:
        """Number of the last product."""
        return len(self.sizes) - 1

    @property
    def dtype(self) -> torch.dtype:
        """In which tiles are multiplied."""
        return self.spec.product_dtype

    def inner(self, product: int) -> int:
        """Columns of a product's matrix."""
        return self.hidden if product == self.last else self.features

    def covered(self, product: int) -> bool:
        """Whether the activation reads every row of a first product."""
        own = sum(c.product == product for c in self.columns)
        return own * self.hidden == self.sizes[product]


@dataclass(frozen=True)
class Matrix:
    """A product's matrix of one expert, `(rows, columns)`; sizes may be symbols. See `Layout` for
    `along`."""

    rows: Any
    columns: Any
    dtype: torch.dtype
    along: str = ""


def layout_of(
    spec: MoeSpec,
    tokens: torch.dtype,
    weights: torch.dtype,
    matrices: Sequence[Matrix],
    biases: Sequence[torch.dtype],
    *,
    precision: str = "ieee",
    interpreted: bool = False,
) -> Layout:
    """The layout of a mixture.

    Args:
        spec: what is computed.
        tokens, weights: dtypes of x and of the weights of choices.
        matrices: product by product.
        biases: dtypes of what is added, by product that adds something.
        precision: of products in fp32.
        interpreted: the kernels run in Triton's interpreter.

    Raises:
        NoKernel: there are no kernels for it.
    """
    if any(c.product == TOKEN for c in spec.columns):
        raise NoKernel("experts are one product each")
    sizes = tuple(_number(m.rows) for m in matrices)
    features, hidden = _number(matrices[0].columns), _number(matrices[-1].columns)
    if any(_number(m.columns) * m.rows >= LARGEST for m in matrices):
        raise NoKernel(f"a matrix of an expert has {LARGEST} elements or more")
    columns = tuple(_column(c, sizes[c.product], hidden) for c in spec.columns)
    _require_disjoint(columns, hidden)
    found = iter(biases)
    return Layout(
        spec,
        tokens,
        weights,
        features,
        hidden,
        sizes,
        columns,
        tuple(m.dtype for m in matrices),
        tuple(next(found) if has else None for has in spec.biases),
        tuple(m.along for m in matrices),
        precision,
        interpreted,
    )


def _number(size: object) -> int:
    if not isinstance(size, int):
        raise NoKernel("a number of features is counted in the data")
    return size


def _column(c: Columns, rows: int, hidden: int) -> Column:
    own = range(rows)[c.start : c.stop : c.step]
    if len(own) != hidden or c.step < 1:
        raise NoKernel("the activation takes columns of another number than it gives")
    return Column(c.product, own.start, c.step)


def _require_disjoint(columns: Sequence[Column], hidden: int) -> None:
    taken: set[tuple[int, int]] = set()
    for c in columns:
        own = {(c.product, row) for row in range(c.start, c.start + c.step * hidden, c.step)}
        if taken & own:
            raise NoKernel("two inputs of the activation read the same column")
        taken |= own
