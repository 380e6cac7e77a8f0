"""Mixtures as loops over the experts that were hit, whose number of turns depends on data, and
loops that look like them but leave out more than experts without tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import EXPERTS, Mixture
from .loops import StackedLoop


class Hit(Mixture):
    """A row of one number for each expert that was hit, which chooses its module."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        return self.run(x, weights, mask, self.hit(mask, chosen))

    def hit(self, mask: Tensor, chosen: Tensor) -> Tensor:
        return torch.greater(mask.sum((-1, -2)), 0).nonzero()

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in hit:
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class HitNumbers(Hit):
    """As Python's numbers."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in hit.flatten().tolist():
            k, t = torch.where(mask[e])
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class HitUnique(Mixture):
    """Told by the choices themselves."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in torch.unique(chosen):
            t, k = torch.where(chosen == e.item())
            out[t] += self.experts[int(e)](x[t]) * weights[t, k, None]
        return out


class HitFlat(Mixture):
    """Choices are compared with the tensor that the loop gives."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in F.one_hot(chosen, EXPERTS).sum((0, 1)).nonzero().flatten():
            t, k = torch.where(chosen == self.number(e))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out

    def number(self, e: Tensor) -> Tensor:
        return e


class HitStacked(StackedLoop):
    """transformers v5: experts of another rank are left out, and the sum is a new one each time."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        mask = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for e in mask.any(-1).any(-1).nonzero():
            e = e[0]
            if e == EXPERTS:
                continue
            k, t = torch.where(mask[e])
            gate, up = F.linear(x[t], self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, self.down[e], self.down_bias[e])
            out = out.index_add(0, t, y * weights[t, k].unsqueeze(-1))
        return out


class HitNext(HitFlat):
    """Of the choices that are the next number."""

    def number(self, e: Tensor) -> Tensor:
        return e + 1


class HitMoved(HitFlat):
    """The same in place."""

    def number(self, e: Tensor) -> Tensor:
        return e.clone().add_(1)


class Popular(Hit):
    """Experts that one token alone has chosen stay out."""

    def hit(self, mask: Tensor, chosen: Tensor) -> Tensor:
        return torch.greater(mask.sum((-1, -2)), 3).nonzero()


class FirstTokens(Hit):
    """Told by some of the tokens."""

    def hit(self, mask: Tensor, chosen: Tensor) -> Tensor:
        return torch.greater(mask[:, :, :2].sum((-1, -2)), 0).nonzero()


class FirstChoice(Hit):
    """Told by some of the choices."""

    def hit(self, mask: Tensor, chosen: Tensor) -> Tensor:
        return torch.greater(mask[:, 0].sum(-1), 0).nonzero()


class UniqueFirst(HitNumbers):
    def hit(self, mask: Tensor, chosen: Tensor) -> Tensor:
        return torch.unique(chosen[:, 0])


class Others(Hit):
    """Told by other choices."""

    def hit(self, mask: Tensor, chosen: Tensor) -> Tensor:
        other = F.one_hot((chosen + 1).clamp(max=EXPERTS - 1), EXPERTS)
        return torch.greater(other.sum((0, 1)), 0).nonzero()


class Allowed(Hit):
    """Told by a mask of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("allowed", torch.arange(EXPERTS) % 2 == 0)

    def hit(self, mask: Tensor, chosen: Tensor) -> Tensor:
        return self.allowed.nonzero()


class Neighbour(Hit):
    """The turn of one expert is given the tokens of the next."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in hit:
            k, t = torch.where(mask[(int(e) + 1) % EXPERTS])
            y = self.experts[(int(e) + 1) % EXPERTS](x[t])
            out.index_add_(0, t, y * weights[t, k, None])
        return out


class Used(Hit):
    """How often each expert was hit is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("used", torch.zeros(EXPERTS))

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in hit:
            self.used[e] += 1
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out * self.used.sum()


class Numbered(Hit):
    """How many experts were hit is told by Python's number."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out, count = torch.zeros_like(x), 0
        for e in hit:
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
            count += 1
        return out / count


class Listed(Hit):
    """Which experts were hit is kept in a list."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out, seen = torch.zeros_like(x), [0]
        for e in hit:
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
            seen.append(1)
        return out / len(seen)


class Noted(Hit):
    """Which expert was the last is kept in the module."""

    last = 1

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in hit:
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
            self.last = int(e) + 1
        return out / self.last


class LastRows(Hit):
    """What the last expert gave is read after the loop."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out, y = torch.zeros_like(x), x
        for e in hit:
            k, t = torch.where(mask[e].squeeze(0))
            y = self.experts[e](x[t]) * weights[t, k, None]
            out.index_add_(0, t, y)
        return out + y.sum(0)


class Renamed(Hit):
    """A name is that of another tensor once an expert was hit."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out, base = torch.zeros_like(x), x
        for e in hit[1:]:
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
            base = weights
        return out + base.sum()


class FirstTwo(Hit):
    """Left after the second turn."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in hit:
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
            if e > 0:
                break
        return out


class Decayed(Hit):
    """What there is already fades with each turn."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in hit:
            k, t = torch.where(mask[e].squeeze(0))
            out = 0.5 * out.index_add(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class TurnsCounted(Hit):
    """Modules are taken in turn, whichever experts were hit."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert, e in self.pairs(hit):
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out

    def pairs(self, hit: Tensor) -> Iterator[tuple[Any, Tensor]]:
        n = 0
        for e in hit:
            yield self.experts[n], e
            n += 1


class Enumerated(TurnsCounted):
    def pairs(self, hit: Tensor) -> Iterator[tuple[Any, Tensor]]:
        for n, e in enumerate(hit):
            yield self.experts[n], e


class EnumeratedLast(Hit):
    """The number of turns is read after the loop, by who asks a generator for them."""

    def run(self, x: Tensor, weights: Tensor, mask: Tensor, hit: Tensor) -> Tensor:
        out, turns = torch.zeros_like(x), 1
        for e in (e for e in hit):
            k, t = torch.where(mask[e].squeeze(0))
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
            turns = int(e) + 1
        return out / turns


class TakenInTurn(TurnsCounted):
    def pairs(self, hit: Tensor) -> Iterator[tuple[Any, Tensor]]:
        modules = iter(self.experts)
        for e in hit:
            yield next(modules), e


HITS = [Hit, HitNumbers, HitUnique, HitFlat, HitStacked]
_OTHERS = "may be others than those that tokens chose"
LOOK_ALIKES = [
    (HitNext, "nothing tells which expert"),
    (HitMoved, "nothing tells which expert"),
    (Popular, _OTHERS),
    (FirstTokens, _OTHERS),
    (FirstChoice, _OTHERS),
    (UniqueFirst, _OTHERS),
    (Others, _OTHERS),
    (Allowed, _OTHERS),
    (Neighbour, "a turn is not that of the expert that was hit"),
    (Used, "a turn does more than adding the rows of an expert"),
    (Numbered, "`count` goes on from one turn to the next"),
    (Listed, "it changes objects of Python's"),
    (Noted, "it changes objects of Python's"),
    (LastRows, "start from the same numbers"),
    (Renamed, "`base` is read after it"),
    (FirstTwo, "not proved"),
    (Decayed, "not proved"),
    (TurnsCounted, "`n` goes on from one turn to the next"),
    (Enumerated, "goes on from one turn to the next"),
    (EnumeratedLast, "`turns` goes on from one turn to the next"),
    (TakenInTurn, "it changes objects of Python's"),
]
