"""Experts one after the other, weighted by comparing choices with their numbers; sums over choices
that are written out; and what only looks like them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import CHOICES, EXPERTS, FEATURES, Mixture
from .lookalikes import LookAlike


class Compared(Mixture):
    """A subclass says what an expert is weighted with."""

    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        """`(T, 1)`."""
        return ((chosen == e) * weights).sum(-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + self.of(e, weights, chosen) * expert(x)
        return out


class ComparedAsFloat(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return (weights * (chosen == e).float()).sum(-1)[:, None]


class ComparedWhere(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen == e, weights, 0.0).sum(-1, keepdim=True)


class ComparedFilled(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return weights.masked_fill(chosen != e, 0.0).sum(dim=-1).unsqueeze(-1)


class ComparedInverse(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return weights.masked_fill(~(chosen == e), 0.0).sum(1, keepdim=True)


class ComparedEinsum(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return torch.einsum("tk,tk->t", weights, (chosen == e).to(weights.dtype))[:, None]


class ComparedHot(Compared):
    """One column of one-hot rows."""

    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return (F.one_hot(chosen, EXPERTS)[..., e] * weights).sum(-1, keepdim=True)


class ComparedTransposed(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return (weights.t() * (chosen.t() == e)).sum(0).view(-1, 1)


class ComparedRounded(Compared):
    """Router weights in another dtype, rounded to that of the experts."""

    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return ((chosen == e) * weights.to(torch.float64)).sum(-1, keepdim=True).to(weights.dtype)


class ComparedOne(Mixture):
    """Top-1."""

    choices = 1

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = F.softmax(self.gate(x), -1).max(-1)
        out = x
        for e, expert in enumerate(self.experts):
            out = out + expert(x) * (weight * (chosen == e)).unsqueeze(-1)
        return out


class ComparedShared(Compared):
    """A factor of all tokens beside it, and an expert for every token."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        gate = 2.0 * torch.sigmoid(x[:, :1])
        out = self.experts[0](x.flip(-1))
        for e, expert in enumerate(self.experts):
            out = out + gate * (self.of(e, weights, chosen) * expert(x))
        return out


def _gathered(module: Mixture, x: Tensor, chosen: Tensor) -> Tensor:
    hidden = torch.einsum("th,tkih->tki", x, module.up[chosen]).relu()
    return torch.einsum("tki,tkhi->tkh", hidden, module.down[chosen])


class WrittenOut(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = _gathered(self, x, chosen)
        return sum(rows[:, k] * weights[:, k, None] for k in range(CHOICES))  # type: ignore[return-value]


class WrittenOutOnto(Mixture):
    """Added to a residual, in place, the last choice first."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows, out = _gathered(self, x, chosen).unbind(1), x.clone()
        for k in reversed(range(CHOICES)):
            out += weights[:, k : k + 1] * rows[k]
        return out


class WrittenOutDense(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, rows = self.weights(x), torch.stack([e(x) for e in self.experts])
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            out = out + rows[e] * weights[:, e, None]
        return out


class TakenAlong(Mixture):
    """`take_along_dim` broadcasts indices."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = torch.stack([expert(x) for expert in self.experts], 1)
        return (torch.take_along_dim(rows, chosen[..., None], 1) * weights[..., None]).sum(1)


class TakenAlone(Mixture):
    """Top-1, whose only position is cut out; one expert is there once more, for every token."""

    choices = 1

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(F.softmax(self.gate(x), -1), 1, -1)
        rows = torch.stack([expert(x) for expert in self.experts], -2)
        taken = torch.take_along_dim(rows, chosen[..., :1, None], -2)[..., 0, :]
        return weights[..., :1] * taken + self.experts[0](x)


PICKED: list[type[Mixture]] = [
    Compared, ComparedAsFloat, ComparedWhere, ComparedFilled, ComparedInverse, ComparedEinsum,
    ComparedHot, ComparedTransposed, ComparedRounded, ComparedOne, ComparedShared, WrittenOut,
    WrittenOutOnto, WrittenOutDense, TakenAlong, TakenAlone,
]  # fmt: skip


class NextExpert(Compared):
    """Weighted where a choice is the expert before."""

    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return super().of(e + 1, weights, chosen)


class OtherThan(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return super().of(e, weights, chosen) if e else (weights * (chosen != e)).sum(-1)[:, None]


class AtMost(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return ((chosen <= e) * weights).sum(-1, keepdim=True)


class LargestOf(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return ((chosen == e) * weights).amax(-1, keepdim=True) - 0.01


class MeanOf(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return ((chosen == e) * weights).mean(-1, keepdim=True) + 0.01


class FilledWithOne(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen == e, weights, 1.0).sum(-1, keepdim=True)


class OtherChoice(Compared):
    """Weights of the other choice, for one expert."""

    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return super().of(e, weights.flip(-1) if e == 2 else weights, chosen)


class FirstChoiceAlone(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        if e == 3:
            weights, chosen = weights[:, :1], chosen[:, :1]
        return super().of(e, weights, chosen)


class LastMissing(Compared):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = [self.of(e, weights, chosen) * self.experts[e](x) for e in range(EXPERTS - 1)]
        return sum(rows)  # type: ignore[return-value]


class BeyondExperts(Compared):
    """What is compared may be any number."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, chosen * 2


class WrittenMask(Compared):
    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        mask = chosen == e
        mask[0] = True
        return (mask * weights).sum(-1, keepdim=True)


class Positions(Mixture):
    """Rows of one choice weighted with the weight of the other."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = _gathered(self, x, chosen)
        return sum(rows[:, k] * weights[:, 1 - k, None] for k in range(CHOICES))  # type: ignore[return-value]


class OnePosition(Mixture):
    """One choice of three is left out."""

    choices = 3

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = _gathered(self, x, chosen)
        return sum(rows[:, k] * weights[:, k, None] for k in range(2))  # type: ignore[return-value]


class FeaturesAlong(Mixture):
    """Indices of one feature for all of them, taken along features."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = torch.stack([expert(x) for expert in self.experts], 1)
        taken = torch.take_along_dim(rows[:, :CHOICES], chosen[..., None], 2)
        return (taken * weights[..., None]).sum(1).expand(-1, FEATURES)


class CountsOn(Mixture):
    """`take_along_dim` takes the expert after the last one for the first one."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = torch.stack([expert(x) for expert in self.experts], 1)
        taken = torch.take_along_dim(rows, (chosen + 1)[..., None], 1)
        return (taken * weights[..., None]).sum(1)


class CountedOff(Compared):
    """A running count of choices picks a weight more than once."""

    def of(self, e: int, weights: Tensor, chosen: Tensor) -> Tensor:
        return ((chosen == e).cumsum(-1) * weights).sum(-1, keepdim=True)


class PositionTwice(Mixture):
    """The first choice is added twice, the second one never."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = _gathered(self, x, chosen)
        return rows[:, 0] * weights[:, 0, None] + rows[:, 0] * weights[:, 0, None]


LOOK_ALIKES = [
    LookAlike(CountsOn, "take_along_dim may count on from the first expert beyond the last"),
    LookAlike(NextExpert, "not every expert is there once"),
    LookAlike(LastMissing, "not every expert is there once"),
    LookAlike(BeyondExperts, "what is compared may be no number of an expert"),
    LookAlike(OtherChoice, "not every expert is there once"),
    LookAlike(FirstChoiceAlone, "not every expert is there once"),
    *(LookAlike(module) for module in (
        OtherThan, AtMost, LargestOf, MeanOf, FilledWithOne, WrittenMask, Positions, OnePosition,
        FeaturesAlong, CountedOff, PositionTwice,
    )),
]  # fmt: skip
