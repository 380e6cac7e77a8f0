"""What a mixture of experts is."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..graph.program import Program
from .names import name_of

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

    Where there are several `parts`, choices have indices of their own in each: `indices.1`,
    `weights.1` and so on are those of the second part. A token has the choices of all parts.

    Where tokens were `sent` to places of experts, operands are `combine: (T, E, C)`, the weight of
    a token at each place, and `dispatch: (T, E, C)`, not zero where it was sent, instead of indices
    and weights, which follow from them. A choice for which a token has no place is dropped: its
    index is E.

    Where a mask tells the experts of a token, of any number, operands are `taken: (T, E)`, not zero
    where the token goes through the expert, or `withheld: (T, E)`, zero there, instead of indices;
    a token goes through an expert whose weight for it is NaN as well. `sent` is E.

    Where rows come in `runs`, one for each expert, a token is a row and has one choice, which
    follows from `ends: (E,)`, integers, instead of indices: expert e has the rows from
    `ends[e - 1]`, or zero, up to `ends[e]`. Instead of `ends` there may be `counts`, of which they
    are the sums so far. `weights: (T, 1)` may be missing. Rows of no run give zeros. Ends do not
    decrease: where they do, PyTorch's grouped product lets a later run replace what an earlier one
    gave on a CPU, as plain lowerings do where there are no biases, and is undefined on a GPU, as
    generated kernels are.
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
    """To how many experts a token is sent at the most, where there are places or a mask tells;
    else 0."""
    scale: float = 1.0
    """Of the result; operators are given weights that have it, or their result gets it."""
    runs: bool = False
    """Rows are sorted by their experts already. Implies `dropping`."""
    parts: int = 1
    """Of the choices; operators are given all of them in one tensor."""

    @property
    def indices(self) -> list[str]:
        """Names of the operands with indices, part by part."""
        return [f"indices.{part}" if part else "indices" for part in range(self.parts)]

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
            "dtype": name_of(self.dtype),
            "product_dtype": name_of(self.product_dtype),
            **({"dropping": True} if self.dropping else {}),
            **({"sent": self.sent} if self.sent else {}),
            **({"scale": self.scale.hex()} if self.scale != 1 else {}),
            **({"runs": True} if self.runs else {}),
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
            data.get("runs", False),
        )
