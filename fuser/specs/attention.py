"""What attention is."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..graph.program import Program
from .names import name_of


@dataclass(frozen=True)
class AttentionSpec:
    """Softmax attention with any pointwise score program.

        s_i = q_i k_iᵀ
        p   = softmax(score(s_0, s_1, ..., c_0, ...) where mask(c_0, ...), else -inf) over keys
        o   = probs(p, c_0, ...) v

    Operands: `q_i: (B, H, Sq, D_i)`, `k_i: (B, Hkv, Sk, D_i)`, `v: (B, Hkv, Sk, Dv)` with H a
    multiple of Hkv (query head h reads key head `h // (H / Hkv)`), and captured tensors `c_j` that
    are 0-d or broadcast against `(B, H, Sq, Sk)`. The result is `(B, H, Sq, Dv)`.

    Programs may also read the position that they are at (`POSITIONS`) and how many there are
    (`SIZES`); and `gather` elements of captured tensors of any shape ("tables").
    """

    contractions: int
    captured: int
    score: Program
    probs: Program
    dtype: torch.dtype
    """Of the result."""
    score_dtype: torch.dtype
    """Of q, k and their product."""
    softmax_dtype: torch.dtype
    """In which the softmax is computed and returned."""
    sink: str = ""
    """A captured tensor `(·, ·, ·, 1)` that joins the denominator as one more logit; "0" for
    softmax-plus-one; "" for none."""
    dead_rows_are_zero: bool = False
    """A query whose keys are all at -inf gives zeros (as SDPA says), not NaN (as softmax does)."""
    dropout: float = 0.0
    """Probability with which an element of p is dropped; the others grow by 1 / (1 - dropout)."""
    mask: Program | None = None
    """Boolean; where it is false the score is -inf, whatever `score` says."""

    @property
    def programs(self) -> tuple[Program, ...]:
        """All of them."""
        return tuple(p for p in (self.score, self.probs, self.mask) if p is not None)

    def to_text(self) -> str:
        fields = {
            "contractions": self.contractions,
            "captured": self.captured,
            "score": self.score.text,
            "probs": self.probs.text,
            "dtype": name_of(self.dtype),
            "score_dtype": name_of(self.score_dtype),
            "softmax_dtype": name_of(self.softmax_dtype),
            "sink": self.sink,
            "dead_rows_are_zero": self.dead_rows_are_zero,
            "dropout": self.dropout,
        }
        if self.mask is not None:
            fields["mask"] = self.mask.text
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> AttentionSpec:
        data = json.loads(text)
        for key in ("dtype", "score_dtype", "softmax_dtype"):
            data[key] = getattr(torch, data[key])
        for key in ("score", "probs", "mask"):
            if key in data:
                data[key] = Program(data[key])
        return AttentionSpec(**data)
