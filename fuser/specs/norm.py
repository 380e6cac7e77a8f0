"""What a normalisation is, with what is pointwise around it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..graph.program import Program
from .names import name_of


@dataclass(frozen=True)
class NormSpec:
    """A normalisation, and what is pointwise before and after it.

        x    = before(c_0, c_1, ...)
        mean = Σ x / n  where it is `centred`, else 0
        v    = Σ (x - mean)² / n,  or  Σ (x - mean)²  where it is `summed`
        r    = 1 / sqrt(v + eps),  or  1 / max(sqrt(v), eps)  where eps is a `floor`
        y    = after((x - mean) r, c_0, c_1, ...)

    Sums run over the last `inner` dimensions, of n elements. Operands: `c_j`, all of one rank,
    broadcast against each other to the shape of x, which is that of the results: y, and where it is
    `kept`, x.
    """

    captured: int
    inner: int
    before: Program
    after: Program
    """Its input `n` is what was normalised."""
    centred: bool
    summed: bool
    floor: bool
    eps: float
    norm_dtype: torch.dtype
    """To which what was normalised is rounded."""
    dtype: torch.dtype
    """Of y."""
    kept: torch.dtype | None = None
    """Of x, where it is a result."""

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Of the results."""
        return [self.dtype] if self.kept is None else [self.dtype, self.kept]

    def to_text(self) -> str:
        fields = {
            **{n: getattr(self, n) for n in ("captured", "inner", "centred", "summed", "floor")},
            **({} if self.kept is None else {"kept": name_of(self.kept)}),
            "before": self.before.text,
            "after": self.after.text,
            "eps": self.eps.hex(),
            "norm_dtype": name_of(self.norm_dtype),
            "dtype": name_of(self.dtype),
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> NormSpec:
        data = json.loads(text)
        data["eps"] = float.fromhex(data["eps"])
        for key in ("norm_dtype", "dtype", "kept"):
            if key in data:
                data[key] = getattr(torch, data[key])
        for key in ("before", "after"):
            data[key] = Program(data[key])
        return NormSpec(**data)
