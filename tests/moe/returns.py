"""Loops over experts whose helper returns early where an expert has no tokens, and helpers that
return something else then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .forms import EXPERTS, Mixture


class Returns(Mixture):
    """What another function gives, which is the sum as it was."""

    def one(self, e: int, x: Tensor, weights: Tensor, chosen: Tensor, out: Tensor) -> Any:
        t, k = torch.where(chosen == e)
        if t.numel() == 0:
            return self.without(x, weights, out)
        return out.index_add(0, t, self.experts[e](x[t]) * weights[t, k, None])

    def without(self, x: Tensor, weights: Tensor, out: Tensor) -> Any:
        return out

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            out = self.one(e, x, weights, chosen, out)
        return out


class ReturnsSum(Returns):
    def one(self, e: int, x: Tensor, weights: Tensor, chosen: Tensor, out: Tensor) -> Any:
        t, k = torch.where(chosen == e)
        if t.numel() == 0:
            return out
        return out.index_add(0, t, self.experts[e](x[t]) * weights[t, k, None])


class ReturnsNothing(Mixture):
    """Rows are added in place."""

    def add(self, e: int, x: Tensor, weights: Tensor, mask: Tensor, out: Tensor) -> Any:
        if not mask.any():
            return
        t, k = torch.where(mask)
        out[t] += self.experts[e](x[t]) * weights[t, k, None]

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            self.add(e, x, weights, chosen == e, out)
        return out


class ReturnsRows(Mixture):
    """Rows as they are given, of which there are none."""

    def rows(self, e: int, h: Tensor) -> Tensor:
        if h.shape[0] == 0:
            return h
        return self.experts[e](h)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, self.rows(e, x[t]) * weights[t, k, None])
        return out


class ReturnsElements(ReturnsRows):
    def rows(self, e: int, h: Tensor) -> Tensor:
        if h.numel() > 0:
            return self.experts[e](h)
        return h


class ReturnsTokens(ReturnsSum):
    """Another tensor."""

    def one(self, e: int, x: Tensor, weights: Tensor, chosen: Tensor, out: Tensor) -> Any:
        t, k = torch.where(chosen == e)
        if t.numel() == 0:
            return x
        return out.index_add(0, t, self.experts[e](x[t]) * weights[t, k, None])


class ReturnsComputed(ReturnsSum):
    """What is returned early is computed for that."""

    def one(self, e: int, x: Tensor, weights: Tensor, chosen: Tensor, out: Tensor) -> Any:
        t, k = torch.where(chosen == e)
        if t.numel() == 0:
            return out + 1.0
        return out.index_add(0, t, self.experts[e](x[t]) * weights[t, k, None])


class ReturnsHowMany(ReturnsNothing):
    """Whether an expert had tokens is told to the caller."""

    def add(self, e: int, x: Tensor, weights: Tensor, mask: Tensor, out: Tensor) -> Any:
        if not mask.any():
            return 0
        super().add(e, x, weights, mask, out)
        return 1

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, count = torch.zeros_like(x), 0
        for e in range(EXPERTS):
            count += self.add(e, x, weights, chosen == e, out)
        return out / count


class ReturnsForFew(ReturnsRows):
    """One token is left as it is."""

    def rows(self, e: int, h: Tensor) -> Tensor:
        if h.shape[0] < 2:
            return h
        return self.experts[e](h)


class ReturnsForOther(ReturnsRows):
    """Told by the rows of another expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            t, k = torch.where(chosen == e)
            other = torch.where(chosen == 0)[0]
            y = x[t]
            if other.numel() > 0:
                y = self.experts[e](y)
            out.index_add_(0, t, y * weights[t, k, None])
        return out


class KeepsOther(Mixture):
    """Without tokens the sum begins with what another name had."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, last = torch.zeros_like(x), torch.ones_like(x)
        for e in range(EXPERTS):
            mask = chosen == e
            if mask.any():
                t, k = torch.where(mask)
                last = out.index_add(0, t, self.experts[e](x[t]) * weights[t, k, None])
            out = last
        return out


RETURNS = [ReturnsSum, ReturnsNothing, ReturnsRows, ReturnsElements]
_OTHERS = "may be others than those that tokens chose"
_LEFT = "what is read later is another where an expert has no tokens"
_RETURNED = "what is returned without it is another thing"
LOOK_ALIKES = [
    (Returns, _RETURNED),
    (ReturnsTokens, _LEFT),
    (ReturnsComputed, _RETURNED),
    (ReturnsHowMany, _RETURNED),
    (ReturnsForFew, _OTHERS),
    (ReturnsForOther, "not proved"),
    (KeepsOther, _LEFT),
]
