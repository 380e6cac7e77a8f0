"""One expert on rows of tokens, and how operators of a mixture carry their operands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.specs import TOKEN, MoeSpec


@lru_cache(maxsize=1024)
def spec_of(text: str) -> MoeSpec:
    """The spec that an operator's argument describes."""
    return MoeSpec.from_text(text)


@dataclass(frozen=True)
class Experts:
    """The weights of all experts.

    Attributes:
        matrices: as `MoeSpec.matrices` names them.
        biases: as `MoeSpec.added` does.
    """

    spec: MoeSpec
    matrices: Sequence[Tensor]
    biases: Sequence[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.matrices, *self.biases]

    @property
    def width(self) -> Any:
        """Features of the result."""
        return self.matrices[-1].shape[-2]

    def of(self, expert: int) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices `(out, in)` and biases `(out,)` of one."""
        return self._part(self.matrices, expert), self._part(self.biases, expert)

    def _part(self, tensors: Sequence[Tensor], expert: int) -> list[Tensor]:
        if self.spec.separate:
            return list(tensors[expert :: self.spec.experts])
        return [x[expert] for x in tensors]


def of_product(spec: MoeSpec, tensors: Sequence[Tensor], number: int) -> list[Tensor]:
    """What all experts have for one product: one tensor with their number first, or one each.

    Args:
        spec: of the mixture.
        tensors: as `MoeSpec.matrices` or `MoeSpec.added` names them.
        number: of the product, among those that have such a tensor.
    """
    if not spec.separate:
        return [tensors[number]]
    own = list(tensors[number * spec.experts : (number + 1) * spec.experts])
    return [own[0].unsqueeze(0)] if len(own) == 1 else own


def apply(
    spec: MoeSpec, rows: Tensor, matrices: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """What one expert makes of rows of tokens; or all experts, each of rows of its own.

    Args:
        spec: of the mixture.
        rows: `(R, D)`, or `(E, R, D)`.
        matrices: `(out, in)`, or `(E, out, in)`, one for each product.
        biases: `(out,)`, or `(E, out)`, one for each product that has one.

    Returns:
        `(R, Dout)`, or `(E, R, Dout)`.
    """
    rows = rows.to(spec.product_dtype)
    first = first_products(spec, rows, matrices, biases)
    return last_product(spec, activated(spec, rows, first), matrices, biases)


def first_products(
    spec: MoeSpec, rows: Tensor, matrices: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[Tensor]:
    """What the activation reads columns of, `(..., R, out)` each."""
    return [_product(spec, rows, m, b) for m, b in _pairs(spec, matrices, biases)[:-1]]


def activated(spec: MoeSpec, rows: Tensor, first: Sequence[Tensor]) -> Tensor:
    """Hidden columns, from first products and perhaps the rows themselves."""
    sources = [rows if c.product == TOKEN else first[c.product] for c in spec.columns]
    columns = zip(sources, spec.columns, strict=True)
    parts = [source[..., c.start : c.stop : c.step] for source, c in columns]
    hidden = spec.activation(**{f"h{i}": part for i, part in enumerate(parts)})
    return hidden.to(spec.product_dtype)


def last_product(
    spec: MoeSpec, hidden: Tensor, matrices: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """The result, from hidden columns."""
    return _product(spec, hidden, *_pairs(spec, matrices, biases)[-1])


def _pairs(
    spec: MoeSpec, matrices: Sequence[Tensor], biases: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor | None]]:
    found = iter(biases)
    added = [next(found) if has else None for has in spec.biases]
    return list(zip(matrices, added, strict=True))


def _product(spec: MoeSpec, rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    dtype = spec.product_dtype
    matrix, bias = matrix.to(dtype), None if bias is None else bias.to(dtype)
    if matrix.ndim == 2:
        return F.linear(rows, matrix, bias)
    if bias is None:
        return torch.bmm(rows, matrix.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), rows, matrix.transpose(1, 2))


def from_the_start(indices: Tensor, experts: int) -> Tensor:
    """Indices of experts, with those that were counted from the end counted from the start.

    Raises:
        IndexError: one is of no expert.
    """
    if indices.numel():
        low, high = (int(n) for n in indices.aminmax())
        if low < -experts or high >= experts:
            wrong = high if high >= experts else low
            raise IndexError(f"a token chose expert {wrong}, and there are {experts}")
    return torch.where(indices < 0, indices + experts, indices)


def owners(ends: Tensor, rows: int) -> Tensor:
    """Which expert's run each row is in, `(rows, 1)`; E where it is in none."""
    at = torch.arange(rows, device=ends.device).unsqueeze(1)
    inside = (F.pad(ends[:-1], (1, 0)) <= at) & (at < ends)
    numbers = torch.arange(1, ends.shape[0] + 1, device=ends.device)
    last = (inside * numbers).amax(1, keepdim=True)
    return torch.where(last > 0, last - 1, ends.shape[0])


def numbered(indices: Tensor, experts: int, dropping: bool) -> Tensor:
    """Indices of experts from the start; `experts` for choices that are dropped.

    Raises:
        IndexError: one is of no expert, where none may be dropped.
    """
    if not dropping:
        return from_the_start(indices, experts)
    return torch.where((indices >= 0) & (indices < experts), indices, experts)


def is_choice(indices: Tensor, spec: MoeSpec) -> Tensor:
    """Whether each index is one of an expert."""
    indices = indices.long()  # an unsigned one is compared with no negative number
    return (indices >= (0 if spec.dropping else -spec.experts)) & (indices < spec.experts)


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """In which results are added up."""
    return torch.float32 if dtype.itemsize < 4 else dtype
