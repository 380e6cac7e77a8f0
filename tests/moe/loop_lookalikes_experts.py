"""Loops whose experts differ from each other, or from what an expert is; see `loop_lookalikes`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import EXPERTS, FEATURES, Mixture


class OtherActivation(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            function = F.gelu if e == 3 else F.silu
            y = expert.w2(function(expert.w1(x[t])) * expert.w3(x[t]))
            out.index_add_(0, t, y * weights[t, k, None])
        return out


class OtherShape(Mixture):
    def __init__(self) -> None:
        super().__init__()
        odd = self.experts[1]
        odd.w1, odd.w3 = (nn.Linear(FEATURES, 8, bias=False) for _ in range(2))
        odd.w2 = nn.Linear(8, FEATURES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class IdentityExpert(Mixture):
    """One expert gives its tokens back."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            y = x[t] if e == 0 else expert(x[t])
            out.index_add_(0, t, y * weights[t, k, None])
        return out


class TellsItsTokens(Mixture):
    """Which tokens chose an expert is returned."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.route(x)
        out, first = torch.zeros_like(x), x
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            first = t if e == 0 else first
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out, first


class MixesTokens(Mixture):
    """What an expert gives a token depends on the others that chose it."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            y = expert.w2(F.softmax(expert.w1(x[t]), 0) * expert.w3(x[t]))
            out.index_add_(0, t, y * weights[t, k, None])
        return out


class ReadsTheSum(Mixture):
    """Experts are given what those before them gave."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = x.clone()
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(out[t]) * weights[t, k, None])
        return out


class WatchesTheSum(Mixture):
    """What the first half of the experts gave is returned, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.route(x)
        out, half = torch.zeros_like(x), x
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] += expert(x[t]) * weights[t, k, None]
            half = out * 1.0 if e == 1 else half
        return out, half


class WritesToAView(Mixture):
    """The sum is seen in the tensor that it was written to a view of."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        base = x + 1.0
        out = base.view(-1, FEATURES)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return base * out


class OntoTokens(Mixture):
    """`+=` onto what was there before."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = x.clone()
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] += expert(x[t]) * weights[t, k, None]
        return out


class WrittenBefore(Mixture):
    """The sum does not begin with zeros everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        out[:, 0] = 1.0
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] += expert(x[t]) * weights[t, k, None]
        return out


class HalfOfTheFeatures(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t, :8] += (expert(x[t]) * weights[t, k, None])[:, :8]
        return out


class HotOfOthers(Mixture):
    """A column of a one-hot is not the expert of its number, once columns are flipped."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask, out = F.one_hot(chosen, EXPERTS).flip(-1).permute(2, 1, 0), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            k, t = torch.where(mask[e])
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class WrittenMask(Mixture):
    """A mask is changed before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask, out = F.one_hot(chosen, EXPERTS).permute(2, 1, 0), torch.zeros_like(x)
        mask[:, :, 0] = 0
        for e, expert in enumerate(self.experts):
            k, t = torch.where(mask[e])
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class NotChosen(Mixture):
    """Experts that a token did not choose."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        mask, out = F.one_hot(chosen, EXPERTS).permute(2, 1, 0), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            k, t = torch.where(mask[e] == 0)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class Unweighted(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        _, chosen = self.route(x)
        hidden, out = torch.einsum("td,d->td", x, self.up[0, 0]), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, _ = torch.where(chosen == e)
            out.index_add_(0, t, expert(hidden[t]) * 0.5)
        return out


class Detached(Mixture):
    """No gradient reaches one expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            y = expert(x[t])
            out.index_add_(0, t, (y.detach() if e == 0 else y) * weights[t, k, None])
        return out


class GatedInside(Mixture):
    """The hidden features are scaled by something else of the token."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        scale, out = x.mean(-1, keepdim=True), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            y = expert.w2(F.silu(expert.w1(x[t])) * expert.w3(x[t]) * scale[t])
            out.index_add_(0, t, y * weights[t, k, None])
        return out


class WiderWeights(Mixture):
    """Weights have a column more than there are choices, and one that is none."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        weights = torch.cat([weights, weights[:, :1]], 1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class LongerInput(Mixture):
    """Tokens that nobody asks for."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        longer, out = torch.cat([x, x]), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(longer[t]) * weights[t, k, None])
        return out


class LongerResult(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = x.new_zeros(2 * len(x), FEATURES)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class OneRowForAll(Mixture):
    """The sum of an expert's rows goes to each of its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] += (expert(x[t]) * weights[t, k, None]).sum(0, keepdim=True)
        return out


class WrittenPositions(Mixture):
    """Positions are changed before rows are written to them."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            target = t.clone()
            target[:1] = 0
            out.index_add_(0, target, expert(x[t]) * weights[t, k, None])
        return out


class AssertedCapacity(Mixture):
    """More than nine tokens of one expert are an error."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            torch._check(t.shape[0] <= 9)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class CountsItsTokens(Mixture):
    """The result depends on how many tokens an expert has."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out = out.index_add(0, t, expert(x[t]) * weights[t, k, None])
        return out * t.shape[0]


class CountsBySize(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, count = torch.zeros_like(x), 0
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            rows = expert(x[t]) * weights[t, k, None]
            count = count + rows.size(0) * e
            out.index_add_(0, t, rows)
        return out + count


class RowsInPlace(Mixture):
    """One expert's rows are changed before they are added."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            y = expert(x[t]) * weights[t, k, None]
            if e == 0:
                y[:, 0] = 0.0
            out.index_add_(0, t, y)
        return out
