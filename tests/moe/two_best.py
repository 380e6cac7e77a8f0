"""The two best experts, found by one argmax after the other (GShard), and what looks like that."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense_weights import Weighted
from .forms import EXPERTS, Mixture
from .lookalikes import LookAlike


def two_best(scores: Tensor, fill: float = -math.inf) -> tuple[Tensor, ...]:
    """The best expert and the next, and the weight of each, `(T,)`."""
    first = scores.argmax(-1)
    mask = F.one_hot(first, EXPERTS)
    second = scores.masked_fill(mask.bool(), fill).argmax(-1)
    gates = (scores * mask).sum(-1), (scores * F.one_hot(second, EXPERTS)).sum(-1)
    total = gates[0] + gates[1] + 1e-9
    return first, second, gates[0] / total, gates[1] / total


class TwoBest(Weighted):
    """Where all other scores are zero, the next one may be the best again, and counts twice."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(8 * self.gate(x), -1)
        first, second, gate1, gate2 = two_best(scores.masked_fill(scores < 0.9, 0.0), 0.0)
        return self.added(F.one_hot(first, EXPERTS), F.one_hot(second, EXPERTS), gate1, gate2)

    def added(self, mask1: Tensor, mask2: Tensor, gate1: Tensor, gate2: Tensor) -> Tensor:
        return gate1.unsqueeze(-1) * mask1 + gate2[:, None] * mask2


class TwoBestMasked(Weighted):
    """lucidrains: `max` of scores that are multiplied with the other experts."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        gate1, first = scores.max(-1)
        mask1 = F.one_hot(first, EXPERTS).float()
        gate2, second = (scores * (1.0 - mask1)).max(-1)
        mask2 = F.one_hot(second, EXPERTS).float()
        total = gate1 + gate2 + 1e-9
        gates = torch.einsum("t,te->te", gate1 / total, mask1)
        return 2 * (gates + torch.einsum("t,te->te", gate2 / total, mask2))


class TwoBestNormalised(Weighted):
    """Divided by their sum at the end; a large number is subtracted from the best score."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        scores = F.softmax(logits, -1)
        mask1 = F.one_hot(logits.argmax(-1), EXPERTS).to(x.dtype)
        mask2 = F.one_hot((logits - mask1 * 1e9).argmax(-1), EXPERTS).to(x.dtype)
        return self.normalised(scores * mask1 + scores * mask2)

    def normalised(self, weights: Tensor) -> Tensor:
        return weights / weights.sum(-1, keepdim=True)


class TwoBestCompared(Mixture):
    """Experts one after the other, each weighted where one of both is it."""

    def of(self, e: int, first: Tensor, second: Tensor, gate1: Tensor, gate2: Tensor) -> Tensor:
        return gate1 * (first == e) + gate2 * (second == e)

    def forward(self, x: Tensor) -> Tensor:
        best, out = two_best(F.softmax(self.gate(x), -1)), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + self.of(e, *best)[:, None] * expert(x)
        return out


class TwoBestStacked(Mixture):
    """Indices of both in one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, gate1, gate2 = two_best(F.softmax(self.gate(x), -1))
        chosen, weights = torch.stack([first, second], 1), torch.stack([gate1, gate2], 1)
        hidden = torch.einsum("td,tkhd->tkh", x, self.up[chosen]).relu()
        rows = torch.einsum("tkh,tkdh->tkd", hidden, self.down[chosen])
        return (rows * weights[..., None]).sum(1)


TWO_BEST: list[type[Mixture]] = [
    TwoBest, TwoBestMasked, TwoBestCompared, TwoBestStacked, TwoBestNormalised
]  # fmt: skip


class TwoAndMore(TwoBest):
    """All experts have a little weight."""

    def added(self, mask1: Tensor, mask2: Tensor, gate1: Tensor, gate2: Tensor) -> Tensor:
        return super().added(mask1, mask2, gate1, gate2) + 0.01


class TwoByExperts(TwoBestNormalised):
    """Divided by a sum over tokens, which is another one for each expert."""

    def normalised(self, weights: Tensor) -> Tensor:
        return weights / (weights.sum(0) + 0.1)


class TwoRounded(TwoBestNormalised):
    """A quotient that is rounded down is no sum of two."""

    def normalised(self, weights: Tensor) -> Tensor:
        total = weights.sum(-1, keepdim=True)
        return torch.div(3 * weights, total, rounding_mode="floor") + 0 * weights


class TwoAndAll(TwoBest):
    """What is added to the best are the scores of all."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        return scores * F.one_hot(scores.argmax(-1), EXPERTS) + 0.1 * scores


class TwoBestFirst(TwoBest):
    """Tokens are weighted before the experts: with the sum, where both are the same."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.einsum("te,td->ted", self.weights(x), x)
        hidden = torch.einsum("ted,ehd->teh", rows, self.up).relu().square()
        return torch.einsum("teh,edh->td", hidden, self.down)


class TwoBestOfOthers(TwoBestCompared):
    """The second choice goes through the next expert."""

    def of(self, e: int, first: Tensor, second: Tensor, gate1: Tensor, gate2: Tensor) -> Tensor:
        return gate1 * (first == e) + gate2 * (second == (e + 1) % EXPERTS)


class TwoButOne(TwoBestCompared):
    """One of the experts is never a second choice."""

    def of(self, e: int, first: Tensor, second: Tensor, gate1: Tensor, gate2: Tensor) -> Tensor:
        best = gate1 * (first == e)
        return best + gate2 * (second == e) if e else best


class TwoProducts(TwoBestCompared):
    """A product of both weights, and not their sum."""

    def of(self, e: int, first: Tensor, second: Tensor, gate1: Tensor, gate2: Tensor) -> Tensor:
        return gate1 * (first == e) * (gate2 + (second == e))


LOOK_ALIKES = [
    LookAlike(TwoAndMore, "every expert has a weight"),
    LookAlike(TwoAndAll, "every expert has a weight"),
    LookAlike(TwoByExperts, "every expert has a weight"),
    LookAlike(TwoRounded, "every expert has a weight"),
    LookAlike(TwoBestOfOthers, "a choice goes through other experts than the others do"),
    LookAlike(TwoBestFirst),
    LookAlike(TwoButOne),
    LookAlike(TwoProducts),
]
