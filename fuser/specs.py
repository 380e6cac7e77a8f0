"""Specs: the contract between what a pattern found and what a lowering puts there.

A spec says *what* is computed, on operands in a canonical arrangement, and nothing about where
they came from. It is frozen, hashable and has a text form, which is the string argument of the
operator that carries it; a compiled artifact needs nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

import torch

from .graph.program import Program


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
            "dtype": _name(self.dtype),
            "score_dtype": _name(self.score_dtype),
            "softmax_dtype": _name(self.softmax_dtype),
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


TOKEN = -1
"""In place of the number of a first product: the token itself."""


@dataclass(frozen=True)
class Columns:
    """What the activation of an expert reads of a first product, or of the token: every `step`-th
    column from `start` on, up to `stop`, or to the end where that is None."""

    product: int
    start: int = 0
    stop: int | None = None
    step: int = 1


@dataclass(frozen=True)
class MoeSpec:
    """Each token by the experts that it chose, added up.

        h_p = x M_pᵀ + b_p                     first products p = 0, ..., of one expert
        y   = activation(columns of h) Mᵀ + b
        o_t = scale Σ_k weights[t, k] · y(x_t) of expert indices[t, k]

    Operands: `x: (T, D)`; `indices: (T, K)`, integers, an expert possibly twice, and negative ones
    counted from the end; `weights: (T, K)`. Matrices are
    `(E, out, in)` and biases `(E, out)`, or one for each expert without the first dimension where
    they are `separate`. The result is `(T, Dout)`.

    Where tokens were `sent` to places of experts, operands are `combine: (T, E, C)`, the weight of
    a token at each place, and `dispatch: (T, E, C)`, not zero where it was sent, instead of indices
    and weights, which follow from them. A choice for which a token has no place is dropped: its
    index is E.
    """

    experts: int
    columns: tuple[Columns, ...]
    """Of the inputs `h0`, `h1`, ... of `activation`."""
    activation: Program
    biases: tuple[bool, ...]
    """Whether each product adds one, the first products and, at the end, the last."""
    separate: bool
    """Every expert has tensors of its own."""
    weights_first: bool
    """Tokens are multiplied with their weights before they go through the expert, not after it."""
    dtype: torch.dtype
    """Of the result."""
    product_dtype: torch.dtype
    """In which tokens, matrices and biases are multiplied and added."""
    dropping: bool = False
    """A choice whose index is no expert's, negative ones included, is dropped: it gives nothing,
    whatever its weight is."""
    sent: int = 0
    """To how many experts a token is sent at the most, where there are places; else 0."""
    scale: float = 1.0
    """Of the result; operators are given weights that have it, or their result gets it."""

    @property
    def products(self) -> int:
        """How many there are, the last included."""
        return len(self.biases)

    @property
    def matrices(self) -> list[str]:
        """Names of the operands with matrices, product by product."""
        return [name for p in range(self.products) for name in self._names(f"m{p}")]

    @property
    def added(self) -> list[str]:
        """The same for biases."""
        with_bias = [p for p, has in enumerate(self.biases) if has]
        return [name for p in with_bias for name in self._names(f"b{p}")]

    def _names(self, name: str) -> list[str]:
        return [f"{name}_{e}" for e in range(self.experts)] if self.separate else [name]

    def to_text(self) -> str:
        fields = {
            **{name: getattr(self, name) for name in ("experts", "biases", "separate")},
            "columns": [[c.product, c.start, c.stop, c.step] for c in self.columns],
            "activation": self.activation.text,
            "weights_first": self.weights_first,
            "dtype": _name(self.dtype),
            "product_dtype": _name(self.product_dtype),
            **({"dropping": True} if self.dropping else {}),
            **({"sent": self.sent} if self.sent else {}),
            **({"scale": self.scale.hex()} if self.scale != 1 else {}),
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> MoeSpec:
        data = json.loads(text)
        return MoeSpec(
            data["experts"],
            tuple(Columns(*c) for c in data["columns"]),
            Program(data["activation"]),
            tuple(data["biases"]),
            data["separate"],
            data["weights_first"],
            getattr(torch, data["dtype"]),
            getattr(torch, data["product_dtype"]),
            data.get("dropping", False),
            data.get("sent", 0),
            float.fromhex(data.get("scale", "0x1p0")),
        )


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
            **({} if self.kept is None else {"kept": _name(self.kept)}),
            "before": self.before.text,
            "after": self.after.text,
            "eps": self.eps.hex(),
            "norm_dtype": _name(self.norm_dtype),
            "dtype": _name(self.dtype),
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
            "dtype": _name(self.dtype),
            "product_dtype": _name(self.product_dtype),
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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
