"""Look-alikes of routing, sorting and chains: choices, rows and weights that are others."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .chains import Shared
from .dense_weights import Weighted
from .forms import EXPERTS, FEATURES, Mixture, grouped
from .gathering import ChoiceByChoice
from .lookalikes import EVERY, LookAlike
from .sorting import Grouped


class FlippedTokens(Weighted):
    """Weights of other tokens are scattered, at indices that are distinct all the same."""

    def weights(self, x: Tensor) -> Tensor:
        _, chosen = self.route(x)
        mask = torch.zeros(EXPERTS, len(x)).scatter(0, chosen.sort(0).values.t(), 1.0).t()
        return mask * F.softmax(self.gate(x), -1)


class OtherRows(Weighted):
    """The numbers of tokens begin with one."""

    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = x.new_zeros(len(x) + 1, EXPERTS)
        dense[torch.arange(1, len(x) + 1).unsqueeze(1), chosen] = weights
        return dense[:-1]


class PutTwice(Weighted):
    """Something else is written, too."""

    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = x.new_zeros(len(x), EXPERTS)
        dense[torch.arange(len(x)).unsqueeze(1), chosen] = weights
        dense[:, 1] = 0.25
        return dense


class ReadBefore(Weighted):
    """What is read is a copy from before the weights were written."""

    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        dense = x.new_zeros(len(x), EXPERTS)
        copy = dense + 0.5
        dense.scatter_(1, chosen, weights)
        return copy


class WrittenIndices(Weighted):
    """All tokens choose one expert twice, after all."""

    def weights(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        chosen = chosen.clone()
        chosen[:] = 1
        return x.new_zeros(len(x), EXPERTS).scatter(1, chosen, weights)


class OneMinusAMask(Weighted):
    """The chosen ones are left out."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        chosen = scores.topk(self.choices, -1).indices
        return scores * (1.0 - torch.zeros_like(scores).scatter(1, chosen, 1.0))


class FiniteMask(Weighted):
    """A mask that is added has -1e9, which leaves a rest of exp."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        chosen = logits.topk(self.choices, -1).indices
        mask = torch.full_like(logits, -10.0).scatter(1, chosen, 0.0)
        return (logits + mask).softmax(-1)


class BestOfTokens(Weighted):
    """Positions along tokens, not experts."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        order = logits.argsort(0, descending=True)[:EXPERTS] % EXPERTS
        chosen = order.t()[:1].expand(len(x), -1)[:, :2]
        masked = torch.full_like(logits, -math.inf).scatter(1, chosen, 1.0)
        return masked.softmax(-1)


class Descending(Grouped):
    """Experts in the reverse order, whose ends are not."""

    def sort(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        order = flat.argsort(descending=True, stable=True)
        return flat[order], order


class CountedElsewhere(Grouped):
    """How often the first choices alone go to each expert."""

    def counts(self, flat: Tensor) -> Tensor:
        return F.one_hot(flat[::2].repeat(2), EXPERTS).sum(0)


class CountedTwice(Grouped):
    def counts(self, flat: Tensor) -> Tensor:
        twos = torch.full_like(flat, 2)
        return torch.zeros(EXPERTS, dtype=torch.int64).scatter_add(0, flat, twos) // 2


class AddedElsewhere(Grouped):
    """Rows are added to a token that did not choose them."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        count = len(order) // self.choices
        return rows.new_zeros(count, FEATURES).index_add(0, order % count, rows)


class AddedTwice(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        count = len(order) // self.choices
        out = rows.new_zeros(count, FEATURES)
        return out.index_add(0, order // self.choices, rows, alpha=2.0)


class PutBackTwice(Grouped):
    """The rows are there, and then some of them are others."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.empty_like(rows)
        placed[order] = rows
        placed[:1] = 1.0
        return placed.view(-1, self.choices, FEATURES).sum(1)


class PutBackInPart(Grouped):
    """The last place keeps what was there."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.zeros_like(rows)
        placed[order[:-1]] = rows[:-1]
        return placed.view(-1, self.choices, FEATURES).sum(1)


class PutBackElsewhere(Grouped):
    """Where each choice is among the sorted ones is no place of a choice."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.empty_like(rows)
        placed[order.argsort()] = rows
        return placed.view(-1, self.choices, FEATURES).sum(1)


class CopiedElsewhere(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.zeros_like(rows)
        placed.index_copy_(0, order.flip(0), rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class ReadBeforeItIsPut(Grouped):
    """What is read is what was there before."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.ones_like(rows)
        kept = placed + 0.0
        placed[order] = rows
        return kept.view(-1, self.choices, FEATURES).sum(1) + placed.sum()


class AddedToOnes(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.ones_like(rows)
        placed.index_add_(0, order, rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class SoftByThree(Mixture):
    """All experts, by a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu()
        return torch.einsum("te,teh,edh->td", F.softmax(self.gate(x), -1), hidden, self.down)


class OtherTokensByThree(Mixture):
    """Weights of all tokens are added up for each."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu()
        return torch.einsum("se,teh,edh->td", self.weights(x), hidden, self.down)


class FeaturesByThree(Mixture):
    """The weight is another number for every feature."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu()
        weights = self.weights(x).unsqueeze(-1) * self.down_bias
        return torch.einsum("ted,teh,edh->td", weights, hidden, self.down)


class OtherWeights(Grouped):
    """Weights in the order of tokens, of rows in the order of experts."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat = chosen.flatten()
        _, order = self.sort(flat)
        ends = self.counts(flat).cumsum(0).to(torch.int32)
        hidden = grouped(self.tokens(x, order), self.up.mT, offs=ends).relu()
        out = grouped(hidden, self.down.mT, offs=ends)
        return self.back(out * weights.flatten().unsqueeze(-1), order)


class ScaledApart(Shared):
    """Every expert has another number beside its weight."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e, term in enumerate(self.routed(x)):
            out = out + (1.0 + e) * term
        return out


class IntoTheShared(Shared):
    """The shared expert's result is written to in place, and returned."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.shared(x)
        for term in self.routed(x):
            out += term
        return out


class Swapped(ChoiceByChoice):
    """The weight of one choice, and the expert of the other."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for k in range(self.choices):
            hidden = torch.einsum("td,thd->th", x, self.up[chosen[:, k]]).relu()
            mixed = torch.einsum("th,tdh->td", hidden, self.down[chosen[:, k]])
            out = out + mixed * weights[:, 1 - k, None]
        return out


class OneChoiceOfTwo(ChoiceByChoice):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = x
        for _ in range(2):
            hidden = torch.einsum("td,thd->th", x, self.up[chosen[:, 0]]).relu()
            mixed = torch.einsum("th,tdh->td", hidden, self.down[chosen[:, 0]])
            out = out + mixed * weights[:, :1]
        return out


class WeightSquaredInside(Mixture):
    """The weight goes through the activation."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up) * self.weights(x)[..., None]
        return torch.einsum("teh,edh->td", hidden * hidden.sigmoid(), self.down)


class BiasAfterWeight(Mixture):
    """A hidden weight does not weigh the bias that comes after it."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu() * self.weights(x)[..., None]
        return (torch.einsum("teh,edh->ted", hidden, self.down) + self.down_bias).sum(1)


class SentToOthers(Weighted):
    """Tokens are sent where they are not weighted, in part."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask = F.one_hot(chosen, EXPERTS).to(x.dtype)
        rows = torch.einsum("te,td->etd", mask[:, 0], x)
        hidden = torch.einsum("etd,ehd->eth", rows, self.up).relu()
        out = torch.einsum("eth,edh->etd", hidden, self.down)
        return torch.einsum("te,etd->td", torch.einsum("tk,tke->te", weights, mask), out)


class SentWhereGreater(Weighted):
    """Weights below zero are not sent, and weigh all the same."""

    def forward(self, x: Tensor) -> Tensor:
        top, chosen = self.gate(x).topk(self.choices, -1)
        weights = x.new_zeros(len(x), EXPERTS).scatter(1, chosen, top)
        rows = x.unsqueeze(1) * (weights > 0).to(x.dtype).unsqueeze(-1)
        hidden = torch.einsum("ted,ehd->teh", rows, self.up).sigmoid()
        return (torch.einsum("teh,edh->ted", hidden, self.down) * weights.unsqueeze(-1)).sum(1)


PLACES = "rows are cut elsewhere than where the next expert begins"
ROWS = [
    *(LookAlike(module, EVERY) for module in (
        FlippedTokens, OtherRows, PutTwice, ReadBefore, WrittenIndices, OneMinusAMask,
        FiniteMask, BestOfTokens,
    )),
    *(LookAlike(module, PLACES) for module in (CountedElsewhere, CountedTwice)),
    *(LookAlike(module) for module in (
        PutBackTwice, PutBackInPart, PutBackElsewhere, CopiedElsewhere, ReadBeforeItIsPut,
        AddedToOnes, OtherTokensByThree, FeaturesByThree,
    )),
    LookAlike(SoftByThree, EVERY),
    LookAlike(ScaledApart, "experts have other weights beside the columns of one tensor"),
    LookAlike(IntoTheShared, "experts are added in place to what something else has made"),
    LookAlike(Swapped, "a choice is weighted with the weight of another one", parts=2),
    LookAlike(OtherWeights, "a tensor differs between more than tokens, choices and experts"),
    LookAlike(SentToOthers, "rows are weighted before the experts and after them"),
    LookAlike(SentWhereGreater, "rows are weighted before the experts and after them"),
    LookAlike(OneChoiceOfTwo, "not every choice is there once", parts=2),
    *(LookAlike(module) for module in (
        Descending, AddedElsewhere, AddedTwice, WeightSquaredInside, BiasAfterWeight,
    )),
]  # fmt: skip
