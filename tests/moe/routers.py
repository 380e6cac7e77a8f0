"""Routers as models have them: weights and indices of the chosen experts, or of all."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import CHOICES, EXPERTS, FEATURES, Mixture


class Routed(Mixture):
    """Matrices are gathered; a subclass routes."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        gate, up = torch.einsum("td,tkhd->tkh", x, self.gate_up[chosen]).chunk(2, -1)
        out = torch.einsum("tkh,tkdh->tkd", F.silu(gate) * up, self.down[chosen])
        return (out * weights[..., None]).sum(1)


class RoutedDense(Routed):
    """All experts run."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("td,ehd->teh", x, self.gate_up).chunk(2, -1)
        out = torch.einsum("teh,edh->ted", F.silu(gate) * up, self.down)
        return (out * self.weights(x)[..., None]).sum(1)


class TopKThenSoftmax(RoutedDense):
    """Mixtral's paper, GPT-OSS, DBRX."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        top, chosen = torch.topk(self.gate(x), self.choices, -1)
        return F.softmax(top, -1, dtype=torch.float32).to(x.dtype), chosen


class SoftmaxInSingle(RoutedDense):
    """Qwen3: a softmax in fp32, and weights that are not made to add up to one."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), dim=1, dtype=torch.float)
        weights, chosen = torch.topk(scores, self.choices, dim=-1)
        return weights.to(x.dtype), chosen


class Sigmoid(RoutedDense):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.gate(x).sigmoid().topk(self.choices, sorted=False)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, chosen


class GroupLimited(RoutedDense):
    """DeepSeek-V3: a bias corrects scores, and two groups of experts are best."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).sigmoid()
        corrected = scores + self.correction.detach()
        groups = corrected.view(len(x), 2, -1).topk(2, dim=-1)[0].sum(-1)
        best = groups.topk(1, dim=-1, sorted=False)[1]
        mask = torch.zeros_like(groups).scatter_(1, best, 1)
        mask = mask.unsqueeze(-1).expand(-1, 2, EXPERTS // 2).reshape(len(x), EXPERTS)
        masked = corrected.masked_fill(~mask.bool(), 0.0)
        chosen = masked.topk(self.choices, dim=-1, sorted=False)[1]
        weights = scores.gather(1, chosen)
        return weights / (weights.sum(-1, keepdim=True) + 1e-20), chosen


class Sparsemixer(Routed):
    """PhiMoE: a softmax for each of two choices, the second without the first."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x)
        found: list[tuple[Tensor, Tensor]] = []
        for _ in range(2):
            best, chosen = scores.max(dim=-1, keepdim=True)
            far = (best - scores) / scores.abs().clamp(min=best) > 0.02
            gates = scores.masked_fill(far, -math.inf).softmax(-1)
            found.append((gates.gather(-1, chosen), chosen))
            scores = scores.scatter(-1, chosen, -math.inf)
        (a, i), (b, j) = found
        return torch.cat((a, b), -1), torch.cat((i, j), -1)


class Noisy(RoutedDense):
    """Shazeer: noise of a learned size on logits, of which the best go through a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Linear(FEATURES, EXPERTS, bias=False)
        self.register_buffer("drawn", torch.linspace(-1, 1, EXPERTS))

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x) + self.drawn * F.softplus(self.noise(x))
        top, chosen = logits.topk(self.choices, dim=-1)
        return F.softmax(torch.full_like(logits, -math.inf).scatter(-1, chosen, top), dim=-1)


class MaskAdded(RoutedDense):
    """A mask of zeros and -inf is added to logits."""

    def weights(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        chosen = logits.topk(self.choices, dim=-1).indices
        mask = torch.full_like(logits, -math.inf).scatter(-1, chosen, 0.0)
        return (logits + mask).softmax(-1)


class Top1ByMax(Routed):
    """Switch: the best alone."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.gate(x).softmax(-1).max(dim=-1, keepdim=True)
        return weights, chosen


class Top1ByArgmax(RoutedDense):
    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        return scores * F.one_hot(scores.argmax(-1), EXPERTS)


class StraightThrough(RoutedDense):
    """A hard choice, with the gradient of the soft one."""

    def weights(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        hard = F.one_hot(scores.argmax(-1), EXPERTS).to(scores.dtype)
        return hard * scores


class Auxiliary(RoutedDense):
    """Probabilities and counts are returned, for a loss."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        scores = F.softmax(self.gate(x), -1)
        weights, chosen = scores.topk(CHOICES, -1)
        dense = torch.zeros_like(scores).scatter(1, chosen, weights)
        out = torch.stack([expert(x) for expert in self.experts], 1)
        load = F.one_hot(chosen, EXPERTS).float().mean((0, 1))
        loss = (load * scores.mean(0)).sum() * EXPERTS
        return (out * dense.unsqueeze(-1)).sum(1), loss, scores, dense


class WithZLoss(RoutedDense):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        logits = self.gate(x)
        top, chosen = logits.topk(CHOICES, -1)
        weights = top.softmax(-1)
        hidden = torch.einsum("td,tkhd->tkh", x, self.up[chosen]).relu()
        out = torch.einsum("tkh,tkdh->tkd", hidden, self.down[chosen])
        return (out * weights[..., None]).sum(1), logits.logsumexp(-1).square().mean()


ROUTERS: list[type[Mixture]] = [
    TopKThenSoftmax, SoftmaxInSingle, Sigmoid, GroupLimited, Sparsemixer, Noisy, MaskAdded,
    Top1ByMax, Top1ByArgmax, StraightThrough, Auxiliary, WithZLoss,
]  # fmt: skip
