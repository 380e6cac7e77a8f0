"""What resembles a mixture and is none, or one that may not be rewritten, with the reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import CHOICES, EXPERTS, FEATURES, HIDDEN, Mixture, Sorted


@dataclass(frozen=True)
class LookAlike:
    """A module, and why it stays as it is; "" where nobody would take it for a mixture. Each of its
    `parts` is a mixture by itself."""

    module: type[Mixture]
    reason: str = ""
    parts: int = 0


EVERY = "every expert has a weight that is not known to be zero where it was not chosen"


def _stack(module: Mixture, x: Tensor) -> Tensor:
    return torch.stack([expert(x) for expert in module.experts], 1)


class Soft(Mixture):
    """All experts, by a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return (_stack(self, x) * F.softmax(self.gate(x), -1)[..., None]).sum(1)


class MaskedByALargeNumber(Mixture):
    """exp(-20) is no zero."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        top, chosen = logits.topk(CHOICES, -1)
        weights = torch.full_like(logits, -20.0).scatter(1, chosen, top).softmax(-1)
        return (_stack(self, x) * weights[..., None]).sum(1)


class SoftmaxOverTokens(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        top, chosen = logits.topk(CHOICES, -1)
        masked = torch.full_like(logits, -math.inf).scatter(1, chosen, top)
        weights = masked.softmax(0).nan_to_num(0.0)
        return (_stack(self, x) * weights[..., None]).sum(1)


class ExpertsChoose(Mixture):
    """Each expert takes its best tokens: top-k over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        probabilities = F.softmax(self.gate(x), -1)
        top, chosen = probabilities.topk(3, dim=0)
        weights = torch.zeros_like(probabilities).scatter(0, chosen, top)
        return (_stack(self, x) * weights[..., None]).sum(1)


class ScatteredIntoOnes(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = torch.ones(len(x), EXPERTS, dtype=x.dtype).scatter(1, chosen, weights)
        return (_stack(self, x) * dense[..., None]).sum(1)


class PartOfTheExperts(Mixture):
    """As a rank does that has some of them."""

    def forward(self, x: Tensor) -> Tensor:
        own = self.weights(x)[:, 1:3]
        return (torch.stack([e(x) for e in self.experts[1:3]], 1) * own[..., None]).sum(1)


class ChosenTwice(Mixture):
    """Indices that may repeat: a scatter keeps one of them, a sum over choices both."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        chosen = chosen // 2
        dense = torch.zeros(len(x), EXPERTS, dtype=x.dtype).scatter(1, chosen, weights)
        return (_stack(self, x) * dense[..., None]).sum(1)


class PartOfTheTokens(Mixture):
    """Only the first tokens are scattered."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = torch.zeros(len(x), EXPERTS, dtype=x.dtype)
        dense = dense.scatter(1, chosen[:4], weights[:4])
        return (_stack(self, x) * dense[..., None]).sum(1)


class OtherActivation(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        functions = [F.silu, F.silu, F.gelu, F.silu]
        pairs = zip(functions, self.experts, strict=True)
        out = torch.stack([e.w2(f(e.w1(x)) * e.w3(x)) for f, e in pairs], 1)
        return (out * self.weights(x)[..., None]).sum(1)


class OtherShape(Mixture):
    def __init__(self) -> None:
        super().__init__()
        odd = self.experts[1]
        odd.w1, odd.w3 = (nn.Linear(FEATURES, 8, bias=False) for _ in range(2))
        odd.w2 = nn.Linear(8, FEATURES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (_stack(self, x) * self.weights(x)[..., None]).sum(1)


class OtherInput(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([e(x if i else x.flip(-1)) for i, e in enumerate(self.experts)], 1)
        return (out * self.weights(x)[..., None]).sum(1)


class ColumnTwice(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, out = self.weights(x), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + weights[:, min(e, 2), None] * expert(x)
        return out


class ExpertMissing(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, out = self.weights(x), torch.zeros_like(x)
        for e, expert in enumerate(self.experts[:3]):
            out = out + weights[:, e, None] * expert(x)
        return out


class Escapes(Mixture):
    """What one expert gave is returned, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = _stack(self, x)
        return (out * self.weights(x)[..., None]).sum(1), out[:, 0]


class MixesTokens(Mixture):
    """An expert whose activation looks at all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([e.w2(F.softmax(e.w1(x), 0) * e.w3(x)) for e in self.experts], 1)
        return (out * self.weights(x)[..., None]).sum(1)


class NormInside(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack(
            [e.w2(F.layer_norm(e.w1(x), (HIDDEN,)) * e.w3(x)) for e in self.experts], 1
        )
        return (out * self.weights(x)[..., None]).sum(1)


class GateInside(Mixture):
    """The activation is scaled by something else of the token."""

    def forward(self, x: Tensor) -> Tensor:
        other = x.mean(-1, keepdim=True)
        out = torch.stack([e.w2(F.silu(e.w1(x) * other) * e.w3(x)) for e in self.experts], 1)
        return (out * self.weights(x)[..., None]).sum(1)


class BiasAfterWeight(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        return ((_stack(self, x) * self.weights(x)[..., None]) + self.down_bias).sum(1)


class SumOverFeatures(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        return (_stack(self, x) * self.weights(x)[..., None]).sum(-1)


class Detached(Mixture):
    """No gradient reaches the router, and none may."""

    def forward(self, x: Tensor) -> Tensor:
        return (_stack(self, x) * self.weights(x).detach()[..., None]).sum(1)


class WrittenMatrices(Mixture):
    """A gathered matrix is changed before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        up = self.up[chosen]
        up[0] = 0.0
        hidden = torch.einsum("td,tkhd->tkh", x, up).relu()
        out = torch.einsum("tkh,tkdh->tkd", hidden, self.down[chosen])
        return (out * weights[..., None]).sum(1)


class WrittenTokens(Mixture):
    """So is a copy of the tokens, in more than one place."""

    def forward(self, x: Tensor) -> Tensor:
        copy = x.clone()
        copy[0] = 0.0
        copy[1] = 1.0
        out = torch.stack([expert(copy) for expert in self.experts], 1)
        return (out * self.weights(x)[..., None]).sum(1)


class WrittenZeros(Mixture):
    """One expert has a weight for all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = x.new_zeros(len(x), EXPERTS)
        dense[:, 0] = 1.0
        return (_stack(self, x) * dense.scatter(1, chosen, weights)[..., None]).sum(1)


class WrittenWeights(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        dense = self.weights(x)
        dense[:, 0] = 1.0
        return (_stack(self, x) * dense[..., None]).sum(1)


class WrittenScores(Mixture):
    """One expert comes back after the others were ruled out."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        top, chosen = logits.topk(CHOICES, -1)
        masked = torch.full_like(logits, -math.inf).scatter(1, chosen, top)
        masked[:, 1] = 0.5
        return (_stack(self, x) * masked.softmax(-1)[..., None]).sum(1)


class ZeroIsNoNothing(Mixture):
    """Tokens are weighted before an expert that adds biases: zeros give something."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, None] * self.weights(x)[..., None]
        hidden = torch.einsum("ted,ehd->teh", tokens, self.up).relu()
        return (torch.einsum("teh,edh->ted", hidden, self.down) + self.down_bias).sum(1)


class HalfIsNoNothing(Mixture):
    """sigmoid(0) is 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, None] * self.weights(x)[..., None]
        hidden = torch.einsum("ted,ehd->teh", tokens, self.up).sigmoid()
        return torch.einsum("teh,edh->ted", hidden, self.down).sum(1)


class OneLegWeighted(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, None] * self.weights(x)[..., None]
        gate = torch.einsum("ted,ehd->teh", tokens, self.up)
        up = torch.einsum("td,ehd->teh", x, self.gate_up[:, :HIDDEN])
        return torch.einsum("teh,edh->ted", F.silu(gate) * up, self.down).sum(1)


class NormalisedOverTokens(Mixture):
    """An expert without tokens divides zero by zero."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        return (_stack(self, x) * (weights / weights.sum(0))[..., None]).sum(1)


class MaskedLogits(Mixture):
    """Zero times a score that may be -inf."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        keep = torch.zeros_like(logits).scatter(1, logits.topk(CHOICES, -1).indices, 1.0)
        return (_stack(self, x) * (keep * logits)[..., None]).sum(1)


class RoundedResults(Mixture):
    """Rounded on purpose."""

    def forward(self, x: Tensor) -> Tensor:
        rows = (_stack(self, x) * self.weights(x)[..., None]).bfloat16()
        return rows.to(x.dtype).sum(1)


class ClampedIndices(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = x.new_zeros(len(x), EXPERTS).scatter(1, chosen.clamp(max=1), weights)
        return (_stack(self, x) * dense[..., None]).sum(1)


class DroppedChoices(Sorted):
    """-1 is no expert, and is not counted where the next one begins."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, torch.where(weights < 0.45, -1, chosen)

    def forward(self, x: Tensor) -> Tensor:
        rows, _, inverse = self.rows(x)
        return rows[inverse].view(-1, CHOICES, FEATURES).sum(1)


class OtherIndices(Mixture):
    """The matrices of the first product are not those of the second."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        hidden = torch.einsum("td,tkhd->tkh", x, self.up[chosen]).relu()
        out = torch.einsum("tkh,tkdh->tkd", hidden, self.down[chosen.flip(-1)])
        return (out * weights[..., None]).sum(1)


class NotUndone(Sorted):
    """Rows are left in another order than that of their tokens."""

    def forward(self, x: Tensor) -> Tensor:
        rows, order, _ = self.rows(x)
        return rows[order].view(-1, CHOICES, FEATURES).sum(1)


class OtherTokens(Sorted):
    def tokens(self, x: Tensor, order: Tensor) -> Tensor:
        return x[order % len(x)]


class OtherEnds(Sorted):
    """Experts are counted in bins that are not theirs."""

    def forward(self, x: Tensor) -> Tensor:
        rows, _, inverse = self.rows(x, offset=2)
        return rows[inverse].view(-1, CHOICES, FEATURES).sum(1)


LOOKALIKES = [
    *(LookAlike(module, EVERY) for module in (
        Soft, MaskedByALargeNumber, SoftmaxOverTokens, ExpertsChoose, ScatteredIntoOnes,
        ChosenTwice, PartOfTheTokens, Detached, WrittenZeros,
        WrittenWeights, WrittenScores, NormalisedOverTokens, MaskedLogits, ClampedIndices,
    )),
    LookAlike(OtherActivation, "experts have different activations"),
    LookAlike(OtherShape, "experts have tensors of different shapes"),
    LookAlike(OtherInput, "experts are given different tensors"),
    LookAlike(ColumnTwice, "not every expert is there once"),
    LookAlike(PartOfTheExperts, "the weights are those of a part of the experts"),
    LookAlike(ExpertMissing, "not every expert is there once"),
    LookAlike(ZeroIsNoNothing, "an expert makes something of a token that is weighted with zero"),
    LookAlike(HalfIsNoNothing, "an expert makes something of a token that is weighted with zero"),
    LookAlike(OneLegWeighted, "some products of an expert multiply weighted tokens"),
    LookAlike(DroppedChoices, "rows are sorted by what may be no number of an expert"),
    LookAlike(RoundedResults),
    LookAlike(WrittenTokens, "a tensor is written to before the experts have read it"),
    *(LookAlike(module) for module in (
        Escapes, MixesTokens, NormInside, GateInside, BiasAfterWeight, SumOverFeatures,
        OtherIndices, NotUndone, OtherTokens, OtherEnds, WrittenMatrices,
    )),
]  # fmt: skip
