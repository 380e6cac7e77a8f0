"""Look-alikes of experts with a capacity: places that several tokens may have, or nobody's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .capacities import CAPACITY, BestTwo, Capacity, WithBiases
from .forms import EXPERTS
from .lookalikes import LookAlike


class DroppedToTheFirst(Capacity):
    """Who has no place is sent to the first one."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), -1)
        mask = F.one_hot(scores.argmax(-1), EXPERTS)
        position = mask.cumsum(0) - 1
        kept = mask * (position < CAPACITY)
        place = F.one_hot((position * kept).sum(-1), CAPACITY)
        dispatch = (mask[..., None] * place[:, None]).to(x.dtype)
        return dispatch * scores[..., None], dispatch


class ClampedToTheLast(Capacity):
    """All that come too late share the last place."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), -1)
        mask = F.one_hot(scores.argmax(-1), EXPERTS)
        position = ((mask.cumsum(0) - 1) * mask).sum(-1).clamp(max=CAPACITY - 1)
        dispatch = (mask[..., None] * F.one_hot(position, CAPACITY)[:, None]).to(x.dtype)
        return dispatch * scores[..., None], dispatch


class SecondsFromZero(Capacity):
    """Second choices are counted by themselves, and take the places of first ones."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.route(x)
        parts: list[Tensor] = []
        for k in range(2):
            mask = F.one_hot(chosen[:, k], EXPERTS)
            position = mask.cumsum(0) - 1
            mask = mask * (position < CAPACITY)
            place = F.one_hot((position * mask).sum(-1), CAPACITY)
            parts.append(weights[:, k, None, None] * mask[..., None] * place[:, None])
        combine = parts[0] + parts[1]
        return combine, combine.bool().to(x.dtype)


class ChoicesApart(Capacity):
    """The same, with choices in one tensor."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.route(x)
        mask = F.one_hot(chosen, EXPERTS)
        position = mask.cumsum(0) - 1
        mask = mask * (position < CAPACITY)
        place = F.one_hot((position * mask).sum(-1), CAPACITY)
        sent = (mask[..., None] * place[:, :, None]).to(x.dtype)
        return torch.einsum("tk,tkec->tec", weights, sent), sent.sum(1)


class CountedAfterDropping(BestTwo):
    """Seconds begin after those first ones that were kept."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = F.softmax(self.gate(x), -1)
        first = F.one_hot(gates.argmax(-1), EXPERTS)
        second = F.one_hot(gates.masked_fill(first.bool(), -1.0).argmax(-1), EXPERTS)
        position1 = first.cumsum(0) - 1
        kept = first * (position1 < 2)
        position2 = second.cumsum(0) - 1 + kept.sum(0, keepdim=True)
        parts: list[Tensor] = []
        for mask, position in ((first, position1), (second, position2)):
            mask = mask * (position < CAPACITY)
            place = F.one_hot((position * mask).sum(-1), CAPACITY)
            parts.append((gates * mask).unsqueeze(-1) * place[:, None])
        combine = parts[0] + parts[1]
        return combine, combine.bool().to(x.dtype)


class CountedByExperts(Capacity):
    """Positions along experts."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), -1)
        mask = F.one_hot(scores.argmax(-1), EXPERTS)
        place = F.one_hot(((mask.cumsum(1) - 1) * mask).sum(-1), CAPACITY)
        dispatch = (mask[..., None] * place[:, None]).to(x.dtype)
        return dispatch * scores[..., None], dispatch


class CountedInHalf(Capacity):
    """Above 256, positions in bf16 are rounded."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), -1)
        mask = F.one_hot(scores.argmax(-1), EXPERTS)
        position = mask.to(torch.bfloat16).cumsum(0) - 1
        kept = mask * (position < CAPACITY)
        place = F.one_hot((position * kept).sum(-1).long(), CAPACITY)
        dispatch = (kept[..., None] * place[:, None]).to(x.dtype)
        return dispatch * scores[..., None], dispatch


class WeightedDispatch(Capacity):
    """Tokens are weighted on the way to the experts, and after them."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        combine, _ = super().masks(x)
        return combine, combine


class OtherCombine(Capacity):
    """Who was dropped gets the result of another token."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), -1)
        mask = F.one_hot(scores.argmax(-1), EXPERTS)
        position = mask.cumsum(0) - 1
        kept = mask * (position < CAPACITY)
        place = F.one_hot((position * kept).sum(-1), CAPACITY)
        dispatch = (kept[..., None] * place[:, None]).to(x.dtype)
        return (scores * mask)[..., None] * place[:, None], dispatch


class ZeroIsDropped(WithBiases):
    """A weight may be zero, and is learned from what the biases give then."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x).relu()
        mask = F.one_hot(logits.argmax(-1), EXPERTS)
        position = mask.cumsum(0) - 1
        kept = mask * (position < CAPACITY)
        place = F.one_hot((position * kept).sum(-1), CAPACITY)
        combine = (logits * kept)[..., None] * place[:, None]
        return combine, combine.bool().to(x.dtype)


class NegativeWeights(Capacity):
    """Who has a weight below zero is not sent, and has a place all the same."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x) - 2.0
        mask = F.one_hot(logits.argmax(-1), EXPERTS)
        position = mask.cumsum(0) - 1
        kept = mask * (position < CAPACITY)
        place = F.one_hot((position * kept).sum(-1), CAPACITY)
        combine = (logits * kept)[..., None] * place[:, None]
        return combine, (combine > 0).to(x.dtype)


class OnlyWhole(Capacity):
    """Weights below one are rounded to zero."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        combine, _ = super().masks(x)
        return combine, combine.int().to(x.dtype)


class OtherPlaces(Capacity):
    """Experts are given the places of the next one."""

    def run(self, rows: Tensor) -> Tensor:
        return torch.stack([self.experts[e](rows[(e + 1) % EXPERTS]) for e in range(EXPERTS)])


class Weighed(Capacity):
    """Places are weighted as well."""

    def run(self, rows: Tensor) -> Tensor:
        return super().run(rows) * self.down_bias[:, :CAPACITY].unsqueeze(-1)


TOGETHER = "tokens are not known to have places of their own"
PLACES = [
    *(LookAlike(module, TOGETHER) for module in (
        DroppedToTheFirst, ClampedToTheLast, SecondsFromZero, ChoicesApart, CountedAfterDropping,
        CountedByExperts, CountedInHalf,
    )),
    LookAlike(WeightedDispatch, "tokens are weighted where they are sent"),
    LookAlike(OtherCombine, "tokens are combined from places that they were not sent to"),
    LookAlike(NegativeWeights, TOGETHER),
    LookAlike(OnlyWhole, TOGETHER),
    LookAlike(ZeroIsDropped, "a token whose weight is zero is not sent at all"),
    LookAlike(OtherPlaces, "experts are given other places than their own"),
    LookAlike(Weighed, "rows are weighted twice"),
]  # fmt: skip
