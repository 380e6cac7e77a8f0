"""Mixtures whose tokens go through as many experts as a mask tells, and what looks like them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense_weights import MaskedByStatement, Weighted, ZeroedByStatement
from .forms import CHOICES, EXPERTS, FEATURES, Mixture
from .lookalikes import EVERY, LookAlike


class Threshold(Weighted):
    """As many experts as are likely enough."""

    def weights(self, x: Tensor) -> Tensor:
        probabilities = F.softmax(self.gate(x), -1)
        return torch.where(probabilities > 0.2, probabilities, 0.0)


class LikelyEnough(Weighted):
    """The same renormalised: where none is, zero is divided by zero."""

    def weights(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gate(x))
        kept = gates * (gates > 0.6)
        return kept / kept.sum(-1, keepdim=True)


class TiesAreKept(Weighted):
    """All experts at least as likely as the k-th."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x).round()
        last = logits.topk(CHOICES, -1).values[..., -1:]
        return logits.masked_fill(logits < last, -math.inf).softmax(-1)


class AboveTheNext(Weighted):
    """Better than the first one that was not chosen, found by sorting."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        following = logits.sort(-1, descending=True)[0][:, CHOICES : CHOICES + 1]
        low = torch.full_like(logits, -math.inf)
        return F.softmax(torch.where(logits > following, logits, low), -1)


class KthValue(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        last = scores.kthvalue(EXPERTS - CHOICES + 1, dim=-1, keepdim=True).values
        kept = scores * (scores >= last).to(scores.dtype)
        return kept / kept.sum(-1, keepdim=True)


class ByRank(Weighted):
    """The place of each expert in the order of scores."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        rank = scores.argsort(-1, descending=True).argsort(-1)
        return scores.masked_fill(rank >= CHOICES, 0.0)


class TopP(Weighted):
    """The best experts that are likely enough together."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        best, order = scores.sort(-1, descending=True)
        kept = best.cumsum(-1) - best < 0.6
        mask = torch.zeros_like(kept).scatter(-1, order, kept)
        kept = torch.where(mask, scores, torch.zeros_like(scores))
        return kept / kept.sum(-1, keepdim=True)


class ChosenByTwo(Weighted):
    """Both masks may mark the same expert."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        other = F.softmax(x @ self.up[0, :EXPERTS].T, -1)
        masks = F.one_hot(scores.argmax(-1), EXPERTS) + F.one_hot(other.argmax(-1), EXPERTS)
        return scores * masks


class AlwaysTheFirst(Weighted):
    """One expert is for all tokens; the statement that says so comes before the mask is read."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        mask = scores > 0.25
        mask[:, 0] = True
        return scores * mask


class OfLogits(Weighted):
    """What is not masked may be any number."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        return logits * (logits > 0).float()


class MaskedFirst(Mixture):
    """Tokens are weighted before the experts."""

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gate(x))
        weights = torch.where(gates > 0.5, gates, 0.0)
        rows = x.unsqueeze(1) * weights.unsqueeze(-1)
        hidden = torch.einsum("ted,ehd->teh", rows, self.up).relu()
        return torch.einsum("teh,edh->ted", hidden, self.down).sum(1)


class MaskedChain(Mixture):
    """Modules one after the other, and a residual; the weight has two factors."""

    def forward(self, x: Tensor) -> Tensor:
        gates, out = torch.sigmoid(self.gate(x)), x
        weights = gates.masked_fill(~(gates > 0.5), 0.0)
        for e, expert in enumerate(self.experts):
            out = out + x[:, :1] * (weights[:, e, None] * expert(x))
        return out


class StatementOfChosen(ZeroedByStatement):
    """Two other experts than those that were chosen keep their weights."""

    def others(self, x: Tensor) -> Tensor:
        return super().others(x).logical_not()


class FilledInPlace(Weighted):
    """nanoGPT: logits that the choice has read already are overwritten."""

    def filled(self, logits: Tensor, mask: Tensor) -> Tensor:
        logits[mask] = -math.inf
        return logits

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        last = logits.topk(CHOICES, -1).values[:, [-1]]
        return self.filled(logits, logits < last).softmax(-1)


class FilledAfterAnother(FilledInPlace):
    """After a loss has read them, too."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        chosen = logits.topk(CHOICES, -1).indices
        level = logits.mean(-1, keepdim=True)
        mask = torch.ones_like(logits).scatter(1, chosen, 0.0).bool()
        return self.filled(logits, mask).softmax(-1) * (1.0 + level.square())

    def filled(self, logits: Tensor, mask: Tensor) -> Tensor:
        return logits.masked_fill_(mask, -math.inf)


MASKED: list[type[Mixture]] = [
    FilledInPlace, FilledAfterAnother,
    Threshold, LikelyEnough, TiesAreKept, AboveTheNext, KthValue, ByRank, TopP, ChosenByTwo,
    AlwaysTheFirst, OfLogits, MaskedFirst, MaskedChain, StatementOfChosen,
]  # fmt: skip


class OfTokens(Weighted):
    """A mask of tokens says nothing about experts."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        return torch.where(x[:, :1] > 0, scores, 0.0)


class FilledWithLittle(Weighted):
    """exp(-20) is no zero."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        last = logits.topk(CHOICES, -1).values[..., -1:]
        return logits.masked_fill(logits < last, -20.0).softmax(-1)


class FilledWithMore(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        return torch.where(scores > 0.2, scores, 0.01)


class AddedAfterwards(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        return scores * (scores > 0.2) + 1e-3


class SteepGate(Weighted):
    """Nearly a mask."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        return scores * torch.sigmoid((scores - 0.2) * 100)


class SoftmaxOfZeros(Weighted):
    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        return (scores * (scores > 0.2)).softmax(-1)


class OneWhereMasked(Weighted):
    """The other side is masked with one, and not with zero."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        return scores * torch.where(scores > 0.2, scores, 1.0)


class MaskedWithinExperts(Weighted):
    """Softmax over tokens: a masked one is zero, and its neighbours are not."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        return logits.masked_fill(logits < 0.0, -math.inf).softmax(0).nan_to_num(0.1)


class WrittenAfterwards(Weighted):
    """The mask is read before it is written to."""

    def weights(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1).detach()
        mask = scores > 0.2
        weights = scores * mask
        mask[:] = True
        return weights + 0.0 * mask


class MaskedFeatures(Mixture):
    """A mask of features is no mask of experts."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu()
        out = torch.einsum("teh,edh->ted", hidden, self.down)
        kept = out * (torch.arange(FEATURES) > 3)
        return torch.einsum("te,ted->td", F.softmax(self.gate(x), -1), kept)


class StatementOfLittle(MaskedByStatement):
    """exp(-20) is no zero."""

    number = -20.0


class StatementOfMore(ZeroedByStatement):
    """A number is written after it once more."""

    def weights(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.gate(x), -1).clone()
        weights[self.others(x)] = 0.0
        weights[:, 0] = 0.25
        return weights


class FilledTooLate(FilledInPlace):
    """What is read are the numbers from before."""

    def filled(self, logits: Tensor, mask: Tensor) -> Tensor:
        kept = logits.view(-1, EXPERTS) + 0.0
        logits[mask] = -math.inf
        return kept


class FilledWithTen(FilledInPlace):
    """exp(-10) is no zero."""

    def filled(self, logits: Tensor, mask: Tensor) -> Tensor:
        return logits.masked_fill_(mask, -10.0)


class FilledTwice(FilledInPlace):
    """Some of them get a number again."""

    def filled(self, logits: Tensor, mask: Tensor) -> Tensor:
        logits[mask] = -math.inf
        logits[mask.roll(1, 0)] = 0.5
        return logits


LOOK_ALIKES = [
    *(LookAlike(module, EVERY) for module in (
        OfTokens, FilledWithLittle, FilledWithMore, AddedAfterwards, SteepGate, SoftmaxOfZeros,
        FilledTooLate, FilledWithTen, FilledTwice,
        OneWhereMasked, MaskedWithinExperts, WrittenAfterwards, StatementOfLittle, StatementOfMore,
    )),
    LookAlike(MaskedFeatures),
]  # fmt: skip
