"""Loops over experts that Python is told how many tokens each has, and loops that are told other
numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import CHOICES, EXPERTS, Mixture


class Counted(Mixture):
    """DeepSeek-V3's reference: experts without tokens are left out."""

    def numbers(self, chosen: Tensor) -> Any:
        return torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()

    def is_left_out(self, e: int, counts: Any) -> bool:
        return counts[e] == 0

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, counts = torch.zeros_like(x), self.numbers(chosen)
        for e in range(EXPERTS):
            if self.is_left_out(e, counts):
                continue
            t, k = torch.where(chosen == e)
            out[t] += self.experts[e](x[t]) * weights[t, k, None]
        return out


class CountedHot(Mixture):
    """Numbers as conditions, of a vector that is also read elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        counts = F.one_hot(chosen, EXPERTS).sum((0, 1))
        out = torch.zeros_like(x) + counts.float().mean()
        for e, count in enumerate(counts.tolist()):
            if count:
                t, k = torch.where(chosen == e)
                out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class CountedMarks(Counted):
    """DeepSeek's remote code: ones where an expert was chosen, added up."""

    def numbers(self, chosen: Tensor) -> Any:
        marks = chosen.new_zeros((chosen.shape[0], EXPERTS))
        marks.scatter_(1, self.marked(chosen), 1)
        return marks.sum(dim=0).cpu().tolist()

    def marked(self, chosen: Tensor) -> Tensor:
        return chosen

    def is_left_out(self, e: int, counts: Any) -> bool:
        return counts[e] < 1


class HitBins(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        counts = torch.bincount(chosen.reshape(-1), minlength=EXPERTS)
        for e in counts.nonzero().flatten().tolist():
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class CountedOthers(Counted):
    """Of other choices."""

    def numbers(self, chosen: Tensor) -> Any:
        return torch.bincount((chosen.flatten() + 1) % EXPERTS, minlength=EXPERTS).tolist()


class CountedFirst(Counted):
    def numbers(self, chosen: Tensor) -> Any:
        return torch.bincount(chosen[:, 0], minlength=EXPERTS).tolist()


class CountedTokens(CountedMarks):
    """An index that is there twice counts once."""

    def marked(self, chosen: Tensor) -> Tensor:
        return chosen // CHOICES * CHOICES


class CountedNext(Counted):
    """Of the next expert."""

    def is_left_out(self, e: int, counts: Any) -> bool:
        return counts[(e + 1) % EXPERTS] == 0


class CountedFew(Counted):
    """One token alone is left out as well."""

    def is_left_out(self, e: int, counts: Any) -> bool:
        return counts[e] <= 1


class CountedAll(Counted):
    """What is told is no number of tokens of one expert."""

    def is_left_out(self, e: int, counts: Any) -> bool:
        return counts[0] + counts[1] == 0


class CountedMean(Mixture):
    """Numbers are divided by."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        counts = F.one_hot(chosen, EXPERTS).sum((0, 1)).tolist()
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            if counts[e] > 0:
                t, k = torch.where(chosen == e)
                out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None] / counts[e])
        return out


class CountedBeyond(Counted):
    """Choices of which some are no expert: there may be more numbers than experts."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, chosen * 2


class CountedLast(Counted):
    """Numbers of the last expert are read after the loop."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, counts, most = torch.zeros_like(x), self.numbers(chosen), 1
        for e in range(EXPERTS):
            if counts[e] > 0:
                most = counts[e]
                t, k = torch.where(chosen == e)
                out[t] += self.experts[e](x[t]) * weights[t, k, None]
        return out / most


COUNTED = [Counted, CountedHot, CountedMarks, HitBins]
_OTHERS = "may be others than those that tokens chose"
LOOK_ALIKES = [
    (CountedOthers, _OTHERS),
    (CountedFirst, _OTHERS),
    (CountedTokens, _OTHERS),
    (CountedNext, _OTHERS),
    (CountedFew, _OTHERS),
    (CountedAll, _OTHERS),
    (CountedMean, "not proved"),
    (CountedBeyond, "a token that may choose an expert twice"),
    (CountedLast, "what is read later is another"),
]
