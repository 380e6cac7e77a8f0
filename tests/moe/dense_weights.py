"""Weights of all experts, `(tokens, experts)`, in the ways that they are made from a top-k."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import EXPERTS, Mixture


class Weighted(Mixture):
    """All experts run; a subclass says how their weights are made."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu()
        out = torch.einsum("teh,edh->ted", hidden, self.down)
        return torch.einsum("te,ted->td", self.weights(x), out)


class ScatteredInPlace(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        return torch.zeros(len(x), EXPERTS, dtype=x.dtype).scatter_(1, chosen, weights)


class ScatteredByStatement(Weighted):
    """The result of the method is not used."""

    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = x.new_zeros(len(x), EXPERTS)
        dense.scatter_(1, chosen, weights)
        return dense


class ScatterAdd(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        return x.new_zeros(len(x), EXPERTS).scatter_add(1, chosen, weights)


class ScatterReduce(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        return x.new_zeros(len(x), EXPERTS).scatter_reduce(1, chosen, weights, reduce="sum")


class Placed(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = x.new_zeros(len(x), EXPERTS)
        dense[torch.arange(len(x)).unsqueeze(1), chosen] = weights
        return dense


class OneHotSum(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        return (F.one_hot(chosen, EXPERTS) * weights[..., None]).sum(1)


class OneHotEinsum(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        return torch.einsum("tk,tke->te", weights, F.one_hot(chosen, EXPERTS).to(x.dtype))


class OneHotMatmul(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        return (weights.unsqueeze(1) @ F.one_hot(chosen, EXPERTS).to(weights)).squeeze(1)


class ComparedWithNumbers(Weighted):
    """One-hot by comparison with the numbers of experts."""

    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask = chosen.unsqueeze(-1) == torch.arange(EXPERTS)
        return (mask * weights.unsqueeze(-1)).sum(1)


class MaskedByAny(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        chosen = scores.topk(self.choices, -1).indices
        mask = (chosen.unsqueeze(-1) == torch.arange(EXPERTS)).any(1)
        return scores.masked_fill(~mask, 0.0)


class MultipliedMask(Weighted):
    """DeepSpeed's and many others' way: a mask of ones, scattered."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        chosen = scores.topk(self.choices, -1).indices
        kept = scores * torch.zeros_like(scores).scatter_(1, chosen, 1.0)
        return kept / kept.sum(-1, keepdim=True).clamp(min=1e-9)


class Flipped(Weighted):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights.flip(-1), chosen.flip(-1)


class SortedChoices(Weighted):
    """The mask is scattered at choices in ascending order."""

    def weights(self, x: Tensor) -> Tensor:
        scores = torch.sigmoid(self.gate(x))
        chosen = scores.topk(self.choices, -1).indices.sort(-1).values
        return scores * torch.zeros_like(scores).scatter(1, chosen, 1.0)


class TopKBySort(Weighted):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, order = torch.sort(F.softmax(self.gate(x), -1), dim=-1, descending=True)
        return weights[:, : self.choices], order[:, : self.choices]


class TopKByArgsort(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        chosen = logits.argsort(-1, descending=True)[..., : self.choices]
        masked = torch.full_like(logits, -math.inf).scatter(1, chosen, logits.gather(1, chosen))
        return masked.softmax(-1)


class LowestBySort(Weighted):
    """The last ones of an ascending order."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, order = F.softmax(self.gate(x), -1).sort(-1)
        return weights[:, -self.choices :], order[:, -self.choices :]


class WeightedByTwo(Weighted):
    """Weights of two factors: of the choice, and of the expert."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return (out * self.weights(x)[..., None] * self.correction[None, :, None]).sum(1)


class TokensWritten(Weighted):
    """A copy of the tokens is changed before anybody reads it."""

    def forward(self, x: Tensor) -> Tensor:
        copy = x.clone()
        copy[0] = 0.0
        out = torch.stack([expert(copy) for expert in self.experts], 1)
        return (out * self.weights(x)[..., None]).sum(1)


class Squared(Weighted):
    """The same weight twice."""

    def forward(self, x: Tensor) -> Tensor:
        out, weights = torch.stack([expert(x) for expert in self.experts], 1), self.weights(x)
        return (out * weights[..., None] * weights[..., None]).sum(1)


class GateOfTheToken(Weighted):
    """Hidden features of all experts are scaled by something else of the token."""

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean(-1, keepdim=True)
        outs = [e.w2(F.silu(e.w1(x)) * e.w3(x) * gate) for e in self.experts]  # type: ignore[operator]
        return (torch.stack(outs, 1) * self.weights(x)[..., None]).sum(1)


class ScaledByANumber(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return (out * self.weights(x)[..., None] * 2.5 / 3).sum(1)


class MeanOfChoices(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return (out * self.weights(x)[..., None]).mean(1) * EXPERTS


class WeightOnHidden(Weighted):
    """The weight is multiplied with the hidden features, before the second product."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu() * self.weights(x)[..., None]
        return torch.einsum("teh,edh->td", hidden, self.down)


class WeightInsideGate(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("td,ehd->teh", x, self.gate_up).chunk(2, -1)
        hidden = F.silu(gate) * self.weights(x).unsqueeze(-1) * up
        return torch.einsum("teh,edh->ted", hidden, self.down).sum(1)


class SentByMask(Weighted):
    """Tokens are multiplied with a one-hot mask before all experts, and weighted after them."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask = F.one_hot(chosen, EXPERTS).to(x.dtype)
        rows = torch.einsum("te,td->etd", mask.sum(1), x)
        hidden = torch.einsum("etd,ehd->eth", rows, self.up) + self.up.mean(-1).unsqueeze(1)
        out = torch.einsum("eth,edh->etd", hidden.relu(), self.down) + self.down_bias[:, None]
        return torch.einsum("te,etd->td", torch.einsum("tk,tke->te", weights, mask), out)


class SentWhereWeighted(Weighted):
    """The mask is where weights are not zero."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        rows = x.unsqueeze(1) * (weights != 0).to(x.dtype).unsqueeze(-1)
        hidden = torch.einsum("ted,ehd->teh", rows, self.up).sigmoid()
        out = torch.einsum("teh,edh->ted", hidden, self.down)
        return (out * weights.unsqueeze(-1)).sum(1)


class ZeroedByStatement(Weighted):
    """Beside a mask, then renormalised."""

    number = 0.0

    def others(self, x: Tensor) -> Tensor:
        chosen = self.route(x)[1]
        return ~torch.zeros_like(x[:, :EXPERTS], dtype=torch.bool).scatter(1, chosen, True)

    def weights(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.gate(x), -1).clone()
        weights[self.others(x)] = self.number
        return weights / weights.sum(-1, keepdim=True)


class MaskedByStatement(ZeroedByStatement):
    """Logits before their softmax."""

    number = -math.inf

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        logits[self.others(x)] = self.number
        return logits.softmax(-1)


DENSE_WEIGHTS: list[type[Mixture]] = [
    ScatteredInPlace, ScatteredByStatement, ScatterAdd, ScatterReduce, Placed, OneHotSum,
    OneHotEinsum, OneHotMatmul, ComparedWithNumbers, MaskedByAny, MultipliedMask, Flipped,
    SortedChoices, TopKBySort, TopKByArgsort, LowestBySort, WeightedByTwo, TokensWritten,
    Squared, GateOfTheToken, ScaledByANumber, MeanOfChoices, WeightOnHidden, WeightInsideGate,
    SentByMask, SentWhereWeighted, ZeroedByStatement, MaskedByStatement,
]  # fmt: skip
