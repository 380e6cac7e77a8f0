"""Loops over choices and experts in which one turn is another than it should be."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .choice_loops import (
    KeptElsewhere,
    Looped,
    Selected,
    SelectedAlone,
    SelectedFromOne,
    TimesAny,
    WhereAny,
    WhereItIs,
)
from .forms import CHOICES, EXPERTS, FEATURES
from .lookalikes import LookAlike

MISSING = "not every expert is there once"


class Turned(Looped):
    """A subclass says which expert and weight a turn has."""

    def which(self, e: int, k: int) -> tuple[int, int]:
        """The expert that is run, and the choice whose weight it has."""
        return e, k

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = self.start(x)
        for e, k in self.turns():
            own, at = self.which(e, k)
            out = out + self.of(own, x, weights[:, at], chosen[:, k] == e)
        return out


class OtherWeight(Turned):
    def which(self, e: int, k: int) -> tuple[int, int]:
        return e, 1 - k


class FirstWeight(Turned):
    def which(self, e: int, k: int) -> tuple[int, int]:
        return e, 0


class SwappedOnce(Turned):
    """Two experts are swapped for the second choice."""

    def which(self, e: int, k: int) -> tuple[int, int]:
        return (1 - e if e < 2 and k else e), k


class TransposedOnce(Looped):
    """A square matrix the other way round for the second choice."""

    def __init__(self) -> None:
        super().__init__()
        self.square = torch.nn.Parameter(self.up.detach()[:, :FEATURES].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, k in self.turns():
            matrix = self.square[e].t() if k else self.square[e]
            rows = (x @ matrix).relu() @ self.square[e]
            out = out + ((chosen[:, k] == e) * weights[:, k])[:, None] * rows
        return out


class StopsEarly(Looped):
    choices = CHOICES + 1


class OneTurnLess(Looped):
    def turns(self) -> Iterator[tuple[int, int]]:
        return (pair for pair in super().turns() if pair != (2, 1))


class OneTurnMore(Looped):
    def turns(self) -> Iterator[tuple[int, int]]:
        return iter([*super().turns(), (2, 1)])


class FromTheEnd(Looped):
    """Negative numbers are equal to none."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, chosen - EXPERTS


class OtherRouter(Looped):
    """The second choice is that of another router."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        other = (x @ self.up[0, :EXPERTS].T).topk(CHOICES, -1).indices
        out = torch.zeros_like(x)
        for e, k in self.turns():
            out = out + self.of(e, x, weights[:, k], (other if k else chosen)[:, k] == e)
        return out


class NotMaskedOnce(Looped):
    """One expert is for every token."""

    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return super().of(e, x, weight, mask if e < 3 else torch.ones_like(mask))


class AddsElsewhere(WhereItIs):
    """A number where the expert was not chosen."""

    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[:, None], weight[:, None] * self.experts[e](x), 0.1)


class MaskedAsTokens(WhereItIs):
    """As many tokens as features: the mask is one of features."""

    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight[:, None] * self.experts[e](x), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, -x])[:FEATURES])


class Inverted(WhereItIs):
    def of(self, e: int, x: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return super().of(e, x, weight, ~mask)


class TwoMasks(Looped):
    """Rows of one choice weighted where the other one is the expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, k in self.turns():
            rows = ((chosen[:, k] == e) * weights[:, k])[:, None] * self.experts[e](x)
            out = out + torch.where((chosen[:, 1 - k] == e)[:, None], rows, 0.0)
        return out


class Replaces(KeptElsewhere):
    """A later choice replaces what an earlier one gave."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, k in self.turns():
            rows = weights[:, k, None] * self.experts[e](x)
            out = torch.where((chosen[:, k] == e)[:, None], rows, out)
        return out


class Doubles(KeptElsewhere):
    """What is there already is doubled."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, k in self.turns():
            more = out + (out + weights[:, k, None] * self.experts[e](x))
            out = torch.where((chosen[:, k] == e)[:, None], more, out)
        return out


class UpTo(Selected):
    """Each expert replaces those before it."""

    def select(self, x: Tensor, chosen: Tensor) -> Tensor:
        rows = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows = torch.where((chosen <= e).unsqueeze(-1), expert(x), rows)
        return rows


class TwoAreLeft(SelectedFromOne):
    """Whoever chose the second expert has the first one."""

    def select(self, x: Tensor, chosen: Tensor) -> Tensor:
        rows = self.experts[0](x)
        for e in (2, 3):
            rows = torch.where((chosen == e).unsqueeze(-1), self.experts[e](x), rows)
        return rows


class OthersKeepTokens(SelectedAlone):
    """Whoever chose the first expert is not changed."""

    def select(self, x: Tensor, chosen: Tensor) -> Tensor:
        rows = x
        for e in range(1, EXPERTS):
            rows = torch.where((chosen == e).unsqueeze(-1), self.experts[e](x), rows)
        return rows


class LaterExpertsWin(SelectedAlone):
    """Two tests are of one expert: the later one wins, and another one has no test."""

    def select(self, x: Tensor, chosen: Tensor) -> Tensor:
        rows = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            own = (chosen == min(e, 2)).unsqueeze(-1)
            rows = torch.where(own, expert(x), rows)
        return rows


class AnyOfTheNext(WhereAny):
    def any(self, e: int, chosen: Tensor) -> Tensor:
        return super().any((e + 1) % EXPERTS, chosen)


class AnyOfTheFirst(WhereAny):
    """The mask is that of the first choice alone."""

    def any(self, e: int, chosen: Tensor) -> Tensor:
        return (chosen[:, :1] == e).any(-1, keepdim=True)


class ChosenTwice(WhereAny):
    """An expert that is chosen twice counts once."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, chosen // 2 * 2

    def of(self, rows: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, rows, 0.0)


class CountedTwice(TimesAny):
    """Weights are multiplied with how often the expert was chosen."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, torch.cat([chosen[:, :1], chosen[:, :1]], 1)

    def any(self, e: int, chosen: Tensor) -> Tensor:
        return (chosen == e).sum(-1, keepdim=True)


LOOK_ALIKES = [
    *(LookAlike(module, MISSING) for module in (
        OtherWeight, FirstWeight, StopsEarly, OneTurnLess, OneTurnMore, OtherRouter,
        NotMaskedOnce,
    )),
    LookAlike(SwappedOnce, "a choice goes through other experts than the others do"),
    LookAlike(TransposedOnce, "a choice goes through other experts than the others do"),
    LookAlike(FromTheEnd, "what is compared may be no number of an expert"),
    *(LookAlike(module) for module in (
        AddsElsewhere, MaskedAsTokens, Inverted, TwoMasks, Replaces, Doubles, UpTo, TwoAreLeft,
        OthersKeepTokens, LaterExpertsWin, AnyOfTheNext, AnyOfTheFirst, ChosenTwice,
        CountedTwice,
    )),
]  # fmt: skip
