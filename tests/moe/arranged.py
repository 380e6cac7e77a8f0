"""Results of experts side by side: stacked as the last dimension, in one row, or by one matrix; and
what is arranged otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense_weights import Weighted
from .forms import EXPERTS, FEATURES, HIDDEN, Mixture
from .lookalikes import EVERY, LookAlike


class StackedLast(Mixture):
    """Experts are the last dimension, which a product with a column adds up."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.stack([expert(x) for expert in self.experts], -1)
        return (rows @ self.weights(x).unsqueeze(-1)).squeeze(-1)


class StackedLastAndAdded(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.stack([expert(x) for expert in self.experts], dim=2)
        return (rows * self.weights(x).unsqueeze(1)).sum(2)


class SideBySide(Mixture):
    """One row of all results."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([expert(x) for expert in self.experts], -1).view(-1, EXPERTS, FEATURES)
        return torch.bmm(self.weights(x).unsqueeze(1), rows).squeeze(1)


class OneBelowTheOther(Mixture):
    """All rows of an expert, then those of the next one."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([expert(x) for expert in self.experts]).view(EXPERTS, -1, FEATURES)
        return torch.einsum("te,etd->td", self.weights(x), rows)


class InOneMatrix(Mixture):
    """Matrices of all experts in one, before the weights and after them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, EXPERTS * HIDDEN)
        self.last = nn.Linear(EXPERTS * HIDDEN, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.first(x)).view(len(x), EXPERTS, HIDDEN)
        hidden = hidden * self.weights(x).unsqueeze(-1)
        return self.last(hidden.flatten(1))


class InOneMatrixInTurn(InOneMatrix):
    """Hidden features of experts take turns; a product without a bias."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.first(x)).view(len(x), HIDDEN, EXPERTS)
        hidden = hidden * self.weights(x).unsqueeze(1)
        return F.linear(hidden.reshape(len(x), -1), self.last.weight)


class OtherTurns(InOneMatrix):
    """Experts take turns in the last matrix alone."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.first(x)).view(len(x), EXPERTS, HIDDEN)
        hidden = hidden * self.weights(x).unsqueeze(-1)
        return self.last(hidden.transpose(1, 2).reshape(len(x), -1))


class LowRank(InOneMatrix):
    """Adapters of one matrix, added to what that makes."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.first.weight).unflatten(-1, (EXPERTS, HIDDEN))
        low = (self.weights(x)[..., None] * low).flatten(-2)
        return self.base(x) + F.linear(low, self.last.weight) * 2.0


class Normalised(Weighted):
    """Weights by their norm, which is their sum."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        chosen = scores.topk(self.choices, -1).indices
        return F.normalize(scores * torch.zeros_like(scores).scatter(1, chosen, 1.0), p=1, dim=-1)


ARRANGED: list[type[Mixture]] = [
    StackedLast, StackedLastAndAdded, SideBySide, OneBelowTheOther, InOneMatrix,
    InOneMatrixInTurn, OtherTurns, LowRank, Normalised,
]  # fmt: skip


class FeaturesFirst(Mixture):
    """The row is read as if experts took turns."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([expert(x) for expert in self.experts], -1).view(-1, FEATURES, EXPERTS)
        return (rows * self.weights(x).unsqueeze(1)).sum(-1)


class OthersBelow(Mixture):
    """Rows of all experts, read as if tokens came first."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.cat([expert(x) for expert in self.experts]).view(-1, EXPERTS, FEATURES)
        return torch.einsum("te,ted->td", self.weights(x), rows)


class WeightsOfHalves(InOneMatrix):
    """Parts that are weighted are no whole experts."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x).repeat_interleave(2, 1).unsqueeze(-1)
        hidden = F.gelu(self.first(x)).view(len(x), 2 * EXPERTS, HIDDEN // 2)
        return self.last((hidden * weights.flip(1)).flatten(1))


class NormOfTokens(Normalised):
    def weights(self, x: Tensor) -> Tensor:
        return F.normalize(Weighted.weights(self, x), p=1, dim=0)


LOOK_ALIKES = [
    *(LookAlike(module) for module in (FeaturesFirst, OthersBelow, WeightsOfHalves)),
    LookAlike(NormOfTokens, EVERY),
]
