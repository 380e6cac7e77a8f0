"""Specs: the contract between what a pattern found and what a lowering puts there.

A spec says *what* is computed, on operands in a canonical arrangement, and nothing about where
they came from. It is frozen, hashable and has a text form, which is the string argument of the
operator that carries it; a compiled artifact needs nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Groups:
    """Experts in groups of equal size, of which few are looked at.

    Attributes:
        count: how many there are.
        best: the score of a group is the sum of so many of its largest ones.
        kept: how many groups are looked at: those with the largest scores.
        fill: stands in place of the scores of the others.
    """

    count: int
    best: int
    kept: int
    fill: float


@dataclass(frozen=True)
class RouterSpec:
    """The best experts of each token, and their weights.

        s = softmax(before(x)) over experts        if there is one
        c = compared(x, s, b0, b1, ...)            the groups' `fill` in groups that are not kept
        i = positions of the largest c, the largest first
        g = taken(x, s) at i                       then softmax over the choices, perhaps
        w = weights(g, t)                          t = Σ g over the choices

    Operands: logits `(T, E)` and captured tensors `b_j: (E,)`, which get no gradient. Results: w
    and i, `(T, K)`, i in int64.

    NaN is larger than all numbers, as in `topk`. A softmax is that of its input cast to the dtype
    of its result. Programs have the casts of the region, so that what is compared was rounded where
    the region rounds it.
    """

    choices: int
    captured: int
    before: Program
    """Of `x`, a logit."""
    softmax: torch.dtype | None
    """Of the softmax over experts; None where there is none."""
    compared: Program
    groups: Groups | None
    taken: Program
    top_softmax: torch.dtype | None
    """The same for the softmax over choices."""
    total: torch.dtype | None
    """In which `t` is added up and given; None where nobody reads it."""
    weights: Program
    dtype: torch.dtype
    """Of the weights."""
    sorted: bool = True
    """The largest comes first; otherwise the choices of a token may have any order."""
    first: bool = False
    """Of equals the first is chosen for certain, as `max` says and `topk` does not."""

    def to_text(self) -> str:
        groups = self.groups
        fields = {
            **{name: getattr(self, name) for name in ("choices", "captured", "sorted", "first")},
            **{name: getattr(self, name).text for name in _ROUTER_PROGRAMS},
            **{name: dtype and _name(dtype) for name, dtype in self._dtypes().items()},
            "groups": groups and [groups.count, groups.best, groups.kept, groups.fill.hex()],
        }
        return json.dumps(fields, separators=(",", ":"))

    def _dtypes(self) -> dict[str, torch.dtype | None]:
        return {name: getattr(self, name) for name in ("softmax", "top_softmax", "total", "dtype")}

    @staticmethod
    def from_text(text: str) -> RouterSpec:
        data = json.loads(text)
        for name in _ROUTER_PROGRAMS:
            data[name] = Program(data[name])
        for name in ("softmax", "top_softmax", "total", "dtype"):
            data[name] = data[name] and getattr(torch, data[name])
        if data["groups"]:
            count, best, kept, fill = data["groups"]
            data["groups"] = Groups(count, best, kept, float.fromhex(fill))
        return RouterSpec(**data)


_ROUTER_PROGRAMS = ("before", "compared", "taken", "weights")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
