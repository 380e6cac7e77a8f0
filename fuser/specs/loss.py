"""What the loss of a linear layer is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

import torch

from ..graph.program import Program
from .names import name_of


class Reduction(Enum):
    """What becomes of the losses of rows."""

    NONE = "none"
    SUM = "sum"
    MEAN = "mean"
    """Over the rows whose target is not ignored."""
    MEAN_OF_ALL = "mean_of_all"


@dataclass(frozen=True)
class LinearCrossEntropySpec:
    """The cross-entropy of rows of a linear layer.

        z_n    = after(x_n Wᵀ + b, c_0, c_1, ...)
        lse_n  = logsumexp(z_n)
        nll_n  = lse_n - (1 - ε) z_n[t_n] - ε mean(z_n),  0 where t_n is ignored
        loss   = scale Σ_n w_n nll_n + square Σ_n u_n lse_n²

    Operands: `x: (N, D)`, `weight: (V, D)`, `bias: (V,)`, `target: (N,)`, integers; captured
    numbers `c_j`, tensors of one element. `w` and `u` are products of the operands `times_i` and
    quotients by `over_i`, `square_times_i` and `square_over_i`, each `(N,)` or of one element. Each
    sum is a mean where its reduction says so. The result is 0-d, or `(N,)` without a reduction.
    """

    captured: int
    after: Program
    """Of the input `z`, a logit as the product gives it, and the captured numbers."""
    bias: bool
    dtype: torch.dtype
    """Of the result."""
    product_dtype: torch.dtype
    """In which rows, matrix and bias are multiplied and added."""
    reduction: Reduction
    ignore_index: int | None = None
    smoothing: float = 0.0
    """ε, of labels."""
    scale: float = 1.0
    square: float = 0.0
    """Of the squares of logsumexp, the z-loss (PaLM, arXiv 2204.02311, section 5); 0: there is
    none."""
    square_reduction: Reduction = Reduction.SUM

    def to_text(self) -> str:
        fields = {
            "captured": self.captured,
            "after": self.after.text,
            "bias": self.bias,
            "dtype": name_of(self.dtype),
            "product_dtype": name_of(self.product_dtype),
            "reduction": self.reduction.value,
            "ignore_index": self.ignore_index,
            **{name: float(getattr(self, name)).hex() for name in ("smoothing", "scale", "square")},
            "square_reduction": self.square_reduction.value,
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> LinearCrossEntropySpec:
        data = json.loads(text)
        for key in ("dtype", "product_dtype"):
            data[key] = getattr(torch, data[key])
        for key in ("smoothing", "scale", "square"):
            data[key] = float.fromhex(data[key])
        for key in ("reduction", "square_reduction"):
            data[key] = Reduction(data[key])
        data["after"] = Program(data["after"])
        return LinearCrossEntropySpec(**data)
