"""A mixture as a composition: what autograd and the inner backend see of it.

order  = argsort(experts)            rows = x[order // K]
h_p    = product(rows, p)            y    = product(activation(h), last)
out_t  = Σ_k weights[t, k] y[place of (t, k)]

Rows that come in runs are taken as they are, and left so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fuser.specs import TOKEN, MoeSpec

from .experts import accumulating


class Rearranged(torch.autograd.Function):
    """Rows by a permutation, whose gradient needs no sums: rows by the inverse one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return rows[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        index, inverse = ctx.saved_tensors
        return Rearranged.apply(grad, inverse, index), None, None


@dataclass(frozen=True)
class Places:
    """Choices in the order of their experts; those of no expert come last.

    Attributes:
        order: by place, the number of the choice, `t * K + k`; None where that is the place.
        inverse: by choice, its place.
        ends: by expert, the place after its last one.
        known: whether each choice `(T, K)` is one of an expert; None where all are.
    """

    order: Tensor | None
    inverse: Tensor | None
    ends: Tensor
    known: Tensor | None

    @staticmethod
    def of_runs(ends: Tensor, rows: int) -> Places:
        """Those of rows that are sorted already."""
        known = torch.arange(rows, device=ends.device).unsqueeze(1) < ends.amax()
        return Places(None, None, ends, known)

    def sort(self, rows: Tensor) -> Any:
        """Rows by place, of rows by choice."""
        return rows if self.order is None else Rearranged.apply(rows, self.order, self.inverse)

    def restore(self, rows: Tensor) -> Any:
        """Rows by choice, of rows by place."""
        return rows if self.order is None else Rearranged.apply(rows, self.inverse, self.order)

    def kept(self, rows: Tensor) -> Tensor:
        """With zeros for choices of no expert, in rows and in their gradients."""
        assert self.known is not None
        there = self.known.reshape(-1, 1)
        return torch.where(there if self.order is None else there[self.order], rows, 0.0)


def compose(
    spec: MoeSpec,
    x: Tensor,
    weights: Tensor,
    places: Places,
    product: Callable[[Tensor, int], Tensor],
    absent: float = 0.0,
) -> Tensor:
    """The mixture.

    Args:
        spec: what is computed.
        x: `(T, D)`.
        weights: `(T, K)`.
        places: of the choices.
        product: rows, in the order of `places`, times the matrices of a product, and what is added.
        absent: what a choice of no expert gives its token.

    Returns:
        `(T, Dout)`.
    """
    (tokens, choices), wide = weights.shape, accumulating(spec.dtype)
    # each choice has a copy of its token, so that gradients are added up in one order
    copies = x.unsqueeze(1).expand(-1, choices, -1).reshape(tokens * choices, x.shape[-1])
    rows = places.sort(copies)
    rows = places.kept(rows) if spec.dropping else rows
    weight = places.sort(weights.reshape(-1, 1))
    rows = (rows * weight if spec.weights_first else rows).to(spec.product_dtype)
    first = [product(rows, p) for p in range(spec.products - 1)]
    sources = [rows if c.product == TOKEN else first[c.product] for c in spec.columns]
    columns = zip(sources, spec.columns, strict=True)
    parts = [source[:, c.start : c.stop : c.step] for source, c in columns]
    hidden = spec.activation(**{f"h{i}": part for i, part in enumerate(parts)})
    y = product(hidden.to(spec.product_dtype), spec.products - 1).to(wide)
    each = places.restore(y if spec.weights_first else y * weight)
    each = each.view(tokens, choices, y.shape[-1])
    if places.known is not None:
        each = torch.where(places.known.unsqueeze(-1), each, absent)
    return each.sum(1).to(spec.dtype)
