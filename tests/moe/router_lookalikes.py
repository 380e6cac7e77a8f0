"""What resembles a router and is none, or one of which a part stays as it is, with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .route import DeepSeekV3, Routed, Router

OTHERS = "stands between logits and weights"
UNWEIGHED = "weights are combined with another tensor"


@dataclass(frozen=True)
class LookAlike:
    """A module, why it stays as it is, and how many smaller regions are found in it instead."""

    module: type[Router]
    reason: str
    smaller: int = 0


class SoftmaxOverTokens(Router):
    def forward(self, logits: Tensor) -> Routed:
        return tuple(logits.softmax(0).topk(self.choices, -1))


class ScoresOfOthers(Router):
    """What is compared is no part of what weighs."""

    def forward(self, logits: Tensor) -> Routed:
        chosen = logits.flip(-1).sigmoid().topk(self.choices, -1).indices
        return logits.softmax(-1).gather(-1, chosen), chosen


class SummedOverTokens(Router):
    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.softmax(-1).topk(self.choices, -1)
        return weights / weights.sum(0, keepdim=True), chosen


class SoftmaxOverTokensLast(Router):
    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.sigmoid().topk(self.choices, -1)
        return weights.softmax(0), chosen


class Smallest(Router):
    def forward(self, logits: Tensor) -> Routed:
        return tuple(logits.softmax(-1).topk(self.choices, -1, largest=False))


class WeightsHaveTheCorrection(Router):
    """A gradient gets to the correction, so that it stays outside."""

    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = (logits.sigmoid() + self.correction).topk(self.choices, -1)
        return weights / weights.sum(-1, keepdim=True), chosen


class SumOfThree(DeepSeekV3):
    """The rounding of such a sum depends on its order."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        best = scores.view(-1, 2, 4).topk(3, -1)[0].sum(-1).topk(1, -1)[1]
        mask = torch.zeros_like(scores[:, :2]).scatter(1, best, 1).bool()
        mask = mask.repeat_interleave(4, 1)
        chosen = scores.masked_fill(~mask, -math.inf).topk(self.choices, -1)[1]
        return scores.gather(1, chosen), chosen


class WorstGroups(Router):
    """The mask is the wrong way round."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        best = scores.view(-1, 4, 2).amax(-1).topk(2, -1)[1]
        mask = scores.new_zeros(len(scores), 4).scatter(1, best, 1).bool().repeat_interleave(2, 1)
        chosen = scores.masked_fill(mask, -math.inf).topk(self.choices, -1)[1]
        return scores.gather(1, chosen), chosen


class GroupsOfOthers(Router):
    """Groups are judged by scores without the correction."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        best = scores.view(-1, 4, 2).amax(-1).topk(2, -1)[1]
        mask = scores.new_zeros(len(scores), 4).scatter(1, best, 1).bool().repeat_interleave(2, 1)
        corrected = (scores + self.correction).masked_fill(~mask, -math.inf)
        chosen = corrected.topk(self.choices, -1)[1]
        return scores.gather(1, chosen), chosen


class ScatteredGroups(Router):
    """Every fourth expert is of one group."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        best = scores.view(-1, 2, 4).amax(1).topk(2, -1)[1]
        mask = scores.new_zeros(len(scores), 4).scatter(1, best, 1).bool().repeat(1, 2)
        chosen = scores.masked_fill(~mask, -math.inf).topk(self.choices, -1)[1]
        return scores.gather(1, chosen), chosen


class MaskedScoresWeigh(Router):
    """A masked expert has the mask's weight, and no gradient: the mask stays outside."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.softmax(-1)
        best = scores.view(-1, 4, 2).amax(-1).topk(2, -1)[1]
        mask = scores.new_zeros(len(scores), 4).scatter(1, best, 1).bool().repeat_interleave(2, 1)
        weights, chosen = scores.masked_fill(~mask, 0.0).topk(self.choices, -1)
        return weights * 2.0, chosen


class WrittenBetween(Router):
    """Scores are changed between the choice and the weights."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid() * 2.0
        chosen = (scores + self.correction.detach()).topk(self.choices, -1)[1]
        scores[:, 0] = 0.5
        return scores.gather(1, chosen), chosen


class WeightsOfTokens(Router):
    """Each token's scores are shifted by a number of its own, which is no captured tensor."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        chosen = (scores + logits.cumsum(-1)).topk(self.choices, -1)[1]
        return scores.gather(1, chosen), chosen


class OneNumberForAll(Router):
    """A tensor without dimensions has no dtype to promote with."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        chosen = (scores + self.correction.sum()).topk(self.choices, -1)[1]
        return scores.gather(1, chosen), chosen


class RoundedSum(Router):
    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.sigmoid().topk(self.choices, -1)
        return weights / weights.sum(-1, keepdim=True, dtype=torch.bfloat16), chosen


class MaskOfSums(Router):
    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        best = scores.view(-1, 4, 2).amax(-1).topk(2, -1)[1]
        mask = scores.new_ones(len(scores), 4).scatter(1, best, 1.0, reduce="add") > 1
        masked = scores.masked_fill(~mask.repeat_interleave(2, 1), -math.inf)
        chosen = masked.topk(self.choices, -1)[1]
        return scores.gather(1, chosen), chosen


class RepeatedLogits(Router):
    """The region starts behind the repetition."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits[:1].softmax(-1).expand(4, -1)
        weights, chosen = scores.topk(self.choices, -1)
        return weights / weights.sum(-1, keepdim=True), chosen


class TwoSoftmaxes(Router):
    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.softmax(-1).softmax(-1).topk(self.choices, -1)
        return weights / weights.sum(-1, keepdim=True), chosen


class NormalisedTwice(Router):
    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.sigmoid().topk(self.choices, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        return weights / (weights * weights).sum(-1, keepdim=True), chosen


class DividedByTheSumOfOthers(Router):
    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.sigmoid().topk(self.choices, -1)
        return weights / (weights + 1.0).sum(-1, keepdim=True), chosen


class TokensChoose(Router):
    """Each expert chooses tokens: another dimension, of which nothing is said."""

    def forward(self, logits: Tensor) -> Routed:
        return tuple(F.softmax(logits, -1).topk(self.choices, 0))


class NoGradient(Router):
    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.softmax(-1).detach().topk(self.choices, -1)
        return (weights / weights.sum(-1, keepdim=True)) * logits.mean(-1, keepdim=True), chosen


LOOKALIKES = [
    LookAlike(SoftmaxOverTokens, "a softmax runs over another dimension than that of experts"),
    LookAlike(ScoresOfOthers, f"`flip` {OTHERS}"),
    LookAlike(SummedOverTokens, "added up over another dimension than that of choices", 1),
    LookAlike(SoftmaxOverTokensLast, "another dimension than that of choices", 1),
    LookAlike(Smallest, "the experts with the smallest scores are chosen"),
    LookAlike(WeightsHaveTheCorrection, "", 1),
    LookAlike(SumOfThree, "sums of more than two"),
    LookAlike(WorstGroups, "the best groups are masked, and not the others"),
    LookAlike(GroupsOfOthers, "judged by other scores than those that are masked"),
    LookAlike(ScatteredGroups, "groups are not made of neighbouring experts"),
    LookAlike(MaskedScoresWeigh, "", 1),
    LookAlike(WrittenBetween, "a tensor is written to before the router has read it"),
    LookAlike(WeightsOfTokens, f"`cumsum` {OTHERS}"),
    LookAlike(OneNumberForAll, "what is no number of each expert"),
    LookAlike(RoundedSum, "a sum is rounded to another dtype", 1),
    LookAlike(MaskOfSums, "a mask adds something up"),
    LookAlike(RepeatedLogits, "", 1),
    LookAlike(TwoSoftmaxes, "", 1),
    LookAlike(NormalisedTwice, "weights are normalised more than once", 1),
    LookAlike(DividedByTheSumOfOthers, "weights are made from others beside their sum", 1),
    LookAlike(TokensChoose, ""),
    LookAlike(NoGradient, "", 1),
]
