"""Loops that resemble one over experts and are none, or one that may not be rewritten."""

from __future__ import annotations

import torch
from torch import Tensor

from .forms import CHOICES, EXPERTS, Mixture
from .lookalikes import LookAlike
from .loop_lookalikes_experts import (
    AssertedCapacity,
    CountsBySize,
    CountsItsTokens,
    Detached,
    GatedInside,
    HalfOfTheFeatures,
    HotOfOthers,
    IdentityExpert,
    LongerInput,
    LongerResult,
    MixesTokens,
    NotChosen,
    OneRowForAll,
    OntoTokens,
    OtherActivation,
    OtherShape,
    ReadsTheSum,
    RowsInPlace,
    TellsItsTokens,
    Unweighted,
    WatchesTheSum,
    WiderWeights,
    WritesToAView,
    WrittenBefore,
    WrittenMask,
    WrittenPositions,
)


class ExpertSkipped(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(1, EXPERTS):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class ExpertTwice(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in (0, 1, 2, 2):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class Replaces(Mixture):
    """The last expert of a token alone counts."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] = expert(x[t]) * weights[t, k, None]
        return out


class Subtracts(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None], alpha=-1)
        return out


class AddsTwice(Mixture):
    """`out[t] = out[t] + out[t] + rows`."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] = out[t] + (out[t] + expert(x[t]) * weights[t, k, None])
        return out


class Largest(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] = torch.maximum(out[t], expert(x[t]) * weights[t, k, None])
        return out


class Scaled(Mixture):
    """The sum is halved before each expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out *= 0.5
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class ChosenTwice(Mixture):
    """Of two rows of a token, `+=` keeps one."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        chosen = torch.cat([chosen, self.gate(x).argmax(-1, keepdim=True)], 1)
        weights = torch.cat([weights, weights[:, :1]], 1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] += weights[t, k, None] * expert(x[t])
        return out


class OtherIndices(Mixture):
    """One expert looks at other choices."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        other = (-self.gate(x)).topk(CHOICES, -1)[1]
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where((other if e == 1 else chosen) == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class OtherTokens(Mixture):
    """Experts read the tokens of their neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[(t + 1) % len(x)]) * weights[t, k, None])
        return out


class OtherTarget(Mixture):
    """Rows are written to other tokens than they were read from."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, len(x) - 1 - t, expert(x[t]) * weights[t, k, None])
        return out


class OtherInput(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flipped, out = x.flip(-1), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert((flipped if e == 2 else x)[t]) * weights[t, k, None])
        return out


class OtherColumn(Mixture):
    """All choices have the weight of the first."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, _ = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, 0, None])
        return out


class SwappedWeights(Mixture):
    """Weights of the other choice."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, 1 - k, None])
        return out


class OtherWeights(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        squared, out = weights.square(), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * (squared if e == 0 else weights)[t, k, None])
        return out


class SquaredForRows(Mixture):
    """The weight of a choice counts twice."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            own = weights[t, k, None]
            out.index_add_(0, t, expert(x[t]) * (own * own))
        return out


class ScaledByExpert(Mixture):
    """Each expert with a number of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * ((e + 1) * weights[t, k, None]))
        return out


class MovedWeights(Mixture):
    """A number is added to the weights of the rows of an expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * (weights[t, k, None] + 0.5))
        return out


LOOP_LOOKALIKES = [
    *(LookAlike(module) for module in (
        OneRowForAll, AssertedCapacity, CountsItsTokens, CountsBySize,
    )),
    LookAlike(WiderWeights, "rows are weighted with what is not the weight of their choice"),
    LookAlike(LongerInput, "products of an expert multiply different tensors"),
    LookAlike(LongerResult, "a mask has another number of tokens than the result"),
    LookAlike(RowsInPlace, "an intermediate value is used elsewhere, by `setitem`"),
    LookAlike(WrittenPositions),
    LookAlike(ExpertSkipped, "not every expert is there once"),
    LookAlike(ExpertTwice, "not every expert is there once"),
    LookAlike(Replaces, "an expert replaces what another one gave a token"),
    LookAlike(ChosenTwice, "a token that may choose an expert twice keeps one of two rows"),
    LookAlike(OtherIndices, "experts are chosen by different indices"),
    LookAlike(OtherWeights, "weights of experts come from different tensors"),
    LookAlike(OtherInput, "experts are given different tensors"),
    LookAlike(OtherActivation, "experts have different activations"),
    LookAlike(OtherShape, "experts have tensors of different shapes"),
    LookAlike(OtherTokens, "products of an expert multiply different tensors"),
    *(LookAlike(module, "weighted with what is not the weight of their choice") for module in (
        SquaredForRows, MovedWeights,
    )),
    LookAlike(ScaledByExpert, "weights of experts come from different tensors"),
    LookAlike(SwappedWeights, "weighted with what is not the weight of their choice"),
    LookAlike(OtherColumn, "weighted with the weight of another expert"),
    LookAlike(IdentityExpert, "`getitem` stands where an expert's product was expected"),
    LookAlike(TellsItsTokens, "an intermediate value is used elsewhere: returned"),
    LookAlike(ReadsTheSum, "experts are given different tensors"),
    LookAlike(WatchesTheSum, "an output is used before the region is complete"),
    LookAlike(WrittenBefore, "an output is used before the region is complete"),
    LookAlike(WritesToAView, "a tensor that is used elsewhere is mutated within the region"),
    LookAlike(OntoTokens, "experts add to what was there before the loop"),
    LookAlike(HalfOfTheFeatures),
    *(LookAlike(module, "nothing tells which expert the tokens of a mask chose") for module in (
        HotOfOthers, WrittenMask, NotChosen,
    )),
    *(LookAlike(module) for module in (
        Subtracts, AddsTwice, Largest, Scaled, OtherTarget, MixesTokens, Unweighted, Detached,
        GatedInside,
    )),
]  # fmt: skip
