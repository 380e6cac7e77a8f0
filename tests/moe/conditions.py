"""Mixtures as loops over all experts that leave out those without tokens, and loops that look like
them but leave out more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import EXPERTS, Mixture


class IfAny(Mixture):
    """A mask of tokens, and what is done for them within the condition."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = chosen == e
            if self.has_tokens(e, mask, x):
                expert = self.experts[e]
                t, k = torch.where(mask)
                out[t] += expert(x[t]) * weights[t, k, None]
        return out

    def has_tokens(self, e: int, mask: Tensor, x: Tensor) -> Tensor:
        return mask.any()


class IfSum(IfAny):
    def has_tokens(self, e: int, mask: Tensor, x: Tensor) -> Tensor:
        return mask.sum() > 0


class IfNone(Mixture):
    """The turn ends where there is no token."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask, out = F.one_hot(chosen, EXPERTS).permute(2, 1, 0), torch.zeros_like(x)
        for e in range(EXPERTS):
            k, t = torch.where(mask[e])
            if self.is_left_out(k, t):
                continue
            out = out.index_add(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out

    def is_left_out(self, k: Tensor, t: Tensor) -> bool:
        return t.numel() == 0


class IfLength(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            if t.shape[0] > 0:
                out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class IfSome(Mixture):
    """A number of tokens as the condition, and the names of what is done there used again."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            t, k = torch.where(chosen == e)
            if len(t):
                expert, dim = self.experts[e], 0
                out.index_add_(dim, t, expert(x[t]) * weights[t, k, None])
        return out


class IfPopular(IfAny):
    """Experts of one token alone stay out."""

    def has_tokens(self, e: int, mask: Tensor, x: Tensor) -> Tensor:
        return mask.sum() > 1


class IfPositive(IfAny):
    """Told by what has nothing to do with the choices."""

    def has_tokens(self, e: int, mask: Tensor, x: Tensor) -> Tensor:
        return (x[:, e] > 1.0).any()


class IfFirst(IfAny):
    """Told by some of the tokens."""

    def has_tokens(self, e: int, mask: Tensor, x: Tensor) -> Tensor:
        return mask[:3].any()


class IfOther(IfAny):
    """Told by the tokens of another expert."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            if (chosen == (e + 1) % EXPERTS).any():
                t, k = torch.where(chosen == e)
                out[t] += self.experts[e](x[t]) * weights[t, k, None]
        return out


class IfTwo(IfNone):
    """Two tokens at the least."""

    def is_left_out(self, k: Tensor, t: Tensor) -> bool:
        return t.numel() < 2


class IfNoneAfter(IfNone):
    """Told by another expert's tokens, by the time that they are counted."""

    def is_left_out(self, k: Tensor, t: Tensor) -> bool:
        return k.nonzero().shape[0] == 0


class IfCounted(Mixture):
    """How many experts had tokens is counted by Python."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, count = torch.zeros_like(x), 0
        for e in range(EXPERTS):
            mask = chosen == e
            if mask.any():
                t, k = torch.where(mask)
                out[t] += self.experts[e](x[t]) * weights[t, k, None]
                count += 1
        return out / count


class IfShared(Mixture):
    """What is done without tokens as well, by the last expert that had some."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, bias = torch.zeros_like(x), x.new_zeros(())
        for e in range(EXPERTS):
            mask = chosen == e
            if mask.any():
                t, k = torch.where(mask)
                out[t] += self.experts[e](x[t]) * weights[t, k, None]
                bias = x[e].sum()
        return out + bias


class IfElse(Mixture):
    """Without tokens something else is done."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = chosen == e
            if mask.any():
                t, k = torch.where(mask)
                out[t] += self.experts[e](x[t]) * weights[t, k, None]
            else:
                out = out * 0.5
        return out


class IfBuffer(Mixture):
    """How often an expert had tokens is counted in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("used", torch.zeros(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = chosen == e
            if mask.any():
                t, k = torch.where(mask)
                out[t] += self.experts[e](x[t]) * weights[t, k, None]
                self.used[e] += 1.0
        return out * self.used.sum()


CONDITIONS = [IfAny, IfSum, IfNone, IfLength, IfSome]
_OTHERS = "may be others than those that tokens chose"
LOOK_ALIKES = [
    (IfPopular, ""),
    (IfPositive, _OTHERS),
    (IfFirst, _OTHERS),
    (IfOther, _OTHERS),
    (IfTwo, _OTHERS),
    (IfNoneAfter, _OTHERS),
    (IfCounted, "`count` is read after it"),
    (IfShared, "what is read later is another where an expert has no tokens"),
    (IfElse, "not proved"),
    (IfBuffer, "a turn does more than adding the rows of an expert"),
]
