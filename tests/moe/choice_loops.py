"""Loops over choices and experts that compute every expert, and mask its rows by the choice."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import CHOICES, EXPERTS, Mixture, Plain


class Looped(Mixture):
    """A subclass says what is added for an expert and a choice."""

    def turns(self) -> Iterator[tuple[int, int]]:
        """Experts and choices."""
        return ((e, k) for k in range(CHOICES) for e in range(EXPERTS))

    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """Of expert e; the weight of the choice, and whether it is the expert, are `(T,)`."""
        return (mask * weight)[:, None] * self.experts[e](x)

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = self.start(x)
        for e, k in self.turns():
            out = out + self.of(e, x, weights[:, k], chosen[:, k] == e)
        return out


class ExpertsFirst(Looped):
    """What an expert makes is there once; choices are added in place."""

    expert = Plain

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows = expert(x)
            for k in range(CHOICES):
                out += ((chosen[:, k] == e).float() * weights[:, k]).unsqueeze(-1) * rows
        return out


class OfStacks(Looped):
    """Matrices are taken of stacks for every choice again; onto a residual."""

    def start(self, x: Tensor) -> Tensor:
        return x

    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        rows = F.relu(x @ self.up[e].t()) @ self.down[e].t()
        return rows * mask.unsqueeze(-1) * weight.unsqueeze(-1)


class WhereItIs(Looped):
    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        rows = weight[:, None] * self.experts[e](x)
        return torch.where(mask[:, None], rows, torch.zeros_like(rows))


class FilledElsewhere(Looped):
    def turns(self) -> Iterator[tuple[int, int]]:
        return ((e, k) for e in range(EXPERTS) for k in range(CHOICES))

    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return self.experts[e](x).masked_fill(~mask[:, None], 0.0) * weight[:, None]


class KeptElsewhere(Looped):
    """Others keep what they have."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, k in self.turns():
            more = out + weights[:, k, None] * self.experts[e](x)
            out = torch.where((chosen[:, k] == e)[:, None], more, out)
        return out


class Selected(Looped):
    """The expert of each choice is selected, and weighted after that."""

    def select(self, x: Tensor, chosen: Tensor) -> Tensor:
        rows = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows = torch.where((chosen == e).unsqueeze(-1), expert(x), rows)
        return rows

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = x
        for k in range(CHOICES):
            out = out + weights[:, k, None] * self.select(x, chosen[:, k])
        return out


class SelectedFromOne(Selected):
    """Whoever chose none of the others has the first expert."""

    def select(self, x: Tensor, chosen: Tensor) -> Tensor:
        rows = self.experts[0](x)
        for e in range(1, EXPERTS):
            rows = torch.where((chosen == e).unsqueeze(-1), self.experts[e](x), rows)
        return rows


class SelectedAlone(Selected):
    """Top-1: nothing is added up."""

    choices = 1

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = F.softmax(self.gate(x), -1).max(-1)
        return self.select(x, chosen) * weight.unsqueeze(-1)


class WithoutWeights(SelectedAlone):
    def forward(self, x: Tensor) -> Tensor:
        return self.select(x, self.gate(x).argmax(-1))


class OneOfGathered(Mixture):
    """Top-1 by the matrices of the chosen expert."""

    choices = 1

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = F.softmax(self.gate(x), -1).max(-1)
        hidden = torch.bmm(self.up[chosen], x.unsqueeze(-1)).relu()
        return torch.bmm(self.down[chosen], hidden).squeeze(-1) * weight.unsqueeze(-1)


class SumOfWeights(Mixture):
    """Weights of an expert are added up choice by choice."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            weight = x.new_zeros(len(x))
            for k in range(CHOICES):
                weight = weight + torch.where(chosen[:, k] == e, weights[:, k], 0.0)
            out = out + weight[:, None] * expert(x)
        return out


class FirstTwice(SumOfWeights):
    """The weight of the first choice is added twice."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights[:, :1].expand(-1, 2), chosen[:, :1].expand(-1, 2)


class WhereAny(Mixture):
    """A subclass says how a mask of tokens and weights are applied."""

    def of(self, rows: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """Of one expert; `(T, 1)` each."""
        return torch.where(mask, rows * weight, 0.0)

    def any(self, e: int, chosen: Tensor) -> Tensor:
        return (chosen == e).any(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            weight = torch.where(chosen == e, weights, torch.zeros_like(weights))
            weight = weight.sum(-1, keepdim=True)
            out = out + self.of(expert(x), weight, self.any(e, chosen))
        return out


class TimesAny(WhereAny):
    def of(self, rows: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return mask * weight * rows


class OnceEach(WhereAny):
    """Not weighted."""

    def of(self, rows: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, rows, 0.0)


LOOPED: list[type[Mixture]] = [
    Looped, ExpertsFirst, OfStacks, WhereItIs, FilledElsewhere, KeptElsewhere, Selected,
    SelectedFromOne, SelectedAlone, WithoutWeights, OneOfGathered, SumOfWeights, FirstTwice,
    WhereAny, TimesAny, OnceEach,
]  # fmt: skip
