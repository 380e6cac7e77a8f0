"""What chooses experts, and weighs them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..graph.program import Program
from .names import name_of


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
            **{name: dtype and name_of(dtype) for name, dtype in self._dtypes().items()},
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
