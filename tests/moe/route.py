"""Routers alone, as modules that take logits `(tokens, experts)` and give weights and indices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, EXPERTS, CHOICES = 12, 8, 2
Routed = tuple[Tensor, ...]


def single(x: Tensor) -> Tensor:
    """In fp32, or wider where everything is."""
    return x if x.dtype is torch.float64 else x.float()


class Router(nn.Module, ABC):
    """Sizes are arguments, so that a router can be had with many experts, or one choice."""

    def __init__(self, experts: int = EXPERTS, choices: int = CHOICES) -> None:
        super().__init__()
        self.experts, self.choices = experts, choices
        generator = torch.Generator().manual_seed(experts)
        self.correction = nn.Parameter(torch.rand(experts, generator=generator))

    @abstractmethod
    def forward(self, logits: Tensor) -> Routed:
        """Weights and indices, and whatever else is given."""


class Mixtral(Router):
    """A softmax in fp32 of rounded logits, renormalised in place."""

    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = torch.topk(F.softmax(single(logits), dim=-1), self.choices, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        return weights, chosen


class Qwen3(Router):
    def forward(self, logits: Tensor) -> Routed:
        scores = F.softmax(logits, dtype=single(logits).dtype, dim=-1)
        weights, chosen = torch.topk(scores, self.choices, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        return weights.to(logits.dtype), chosen


class GptOss(Router):
    def forward(self, logits: Tensor) -> Routed:
        top, chosen = torch.topk(logits, self.choices, dim=-1)
        return F.softmax(top, dim=1, dtype=top.dtype), chosen


class Llama4(Router):
    """Weights are sigmoids of the logits that were compared."""

    def forward(self, logits: Tensor) -> Routed:
        top, chosen = torch.topk(logits, self.choices, dim=1)
        return torch.sigmoid(single(top)).to(logits.dtype), chosen


class DeepSeekV3(Router):
    """The best of the best groups, by corrected scores; weighted with those that are not."""

    groups, kept, fill = 4, 2, -math.inf

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.sigmoid()
        corrected = scores + self.correction
        groups = corrected.view(-1, self.groups, self.experts // self.groups)
        groups = groups.topk(2, dim=-1)[0].sum(dim=-1)
        best = torch.topk(groups, k=self.kept, dim=-1, sorted=False)[1]
        mask = torch.zeros_like(groups)
        mask.scatter_(1, best, 1)
        mask = mask.unsqueeze(-1).expand(-1, self.groups, self.experts // self.groups)
        mask = mask.reshape(-1, self.experts)
        corrected = corrected.masked_fill(~mask.bool(), self.fill)
        chosen = torch.topk(corrected, k=self.choices, dim=-1, sorted=False)[1]
        weights = scores.gather(1, chosen)
        weights /= weights.sum(dim=-1, keepdim=True) + 1e-20
        return weights * 2.5, chosen


class FilledWithZeros(DeepSeekV3):
    fill = 0.0


class GreatestOfAGroup(Router):
    """A group is as good as its best expert, and a condition chooses."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.softmax(-1)
        groups = scores.unflatten(-1, (4, -1)).amax(-1)
        best = groups.topk(2, -1).indices
        keep = torch.zeros_like(groups, dtype=torch.bool).scatter(1, best, True)
        keep = keep.repeat_interleave(self.experts // 4, dim=1)
        chosen = torch.where(keep, scores, -math.inf).topk(self.choices, -1).indices
        return scores.gather(-1, chosen), chosen


class Corrected(Router):
    """The correction chooses, without a gradient; softplus and a root are the score."""

    def forward(self, logits: Tensor) -> Routed:
        scores = F.softplus(single(logits)).sqrt()
        chosen = (scores.detach() + self.correction.unsqueeze(0)).topk(self.choices, -1)[1]
        weights = torch.gather(scores, -1, chosen)
        total = weights.sum(-1)[:, None].clamp(min=1e-6)
        return (weights / total).type_as(logits), chosen


class Scaled(Router):
    """A temperature before the softmax, and a factor behind it."""

    def forward(self, logits: Tensor) -> Routed:
        scores = torch.softmax(logits / 0.7, dim=-1) + 0.25
        weights, chosen = scores.topk(self.choices, dim=-1)
        return weights * 16.0, chosen


class ChosenByLogits(Router):
    """A softmax of everything weighs, and logits are compared."""

    def forward(self, logits: Tensor) -> Routed:
        chosen = logits.topk(self.choices, dim=-1).indices
        return logits.softmax(-1).gather(-1, chosen), chosen


class ChosenBySoftmax(Router):
    """The reverse, and a softmax of the chosen ones."""

    def forward(self, logits: Tensor) -> Routed:
        chosen = (logits.softmax(-1) + self.correction).topk(self.choices, dim=-1).indices
        return logits.gather(-1, chosen).softmax(-1), chosen


class ThenBoth(Router):
    """A softmax over the chosen ones, divided by its sum once more."""

    def forward(self, logits: Tensor) -> Routed:
        top, chosen = logits.topk(self.choices, dim=-1)
        weights = F.softmax(top * 0.5, dim=-1)
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-9), chosen


class Batched(Router):
    """Tokens in two dimensions."""

    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.view(2, -1, self.experts).softmax(-1).topk(self.choices)
        return weights / weights.sum(-1, keepdim=True), chosen


class Greatest(Router):
    """Switch: the best alone."""

    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.softmax(-1).max(dim=-1, keepdim=True)
        return weights, chosen


class LossBeside(Router):
    """Scores are read for a loss too: they stay, and the router starts from them."""

    def forward(self, logits: Tensor) -> Routed:
        scores = logits.softmax(-1)
        weights, chosen = scores.topk(self.choices, -1)
        return weights / weights.sum(-1, keepdim=True), chosen, scores.mean(0)


class WeightsReadTwice(Router):
    """What the router gives is complete before it is scaled."""

    def forward(self, logits: Tensor) -> Routed:
        weights, chosen = logits.softmax(-1).topk(self.choices, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        return weights * 2.0, chosen, weights


ALONE: list[type[Router]] = [
    Mixtral, Qwen3, GptOss, Llama4, DeepSeekV3, FilledWithZeros, GreatestOfAGroup, Corrected,
    Scaled, ChosenByLogits, ChosenBySoftmax, ThenBoth, Batched, Greatest, LossBeside,
    WeightsReadTwice,
]  # fmt: skip
