"""Experts written out in a chain of additions, with more beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .forms import EXPERTS, FEATURES, Mixture, Mlp


class ResidualFirst(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, out = self.weights(x), x
        for e, expert in enumerate(self.experts):
            out = out + weights[:, e, None] * expert(x)
        return out


class ResidualFirstInPlace(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, out = self.weights(x), x.clone()
        for e, expert in enumerate(self.experts):
            out += weights[:, e, None] * expert(x)
        return out


class Shared(Mixture):
    """One more expert for every token, which a subclass places."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.shared_gate = Mlp(), nn.Linear(FEATURES, 1, bias=False)

    def routed(self, x: Tensor) -> list[Tensor]:
        weights = self.weights(x)
        return [weights[:, e, None] * expert(x) for e, expert in enumerate(self.experts)]


class SharedFirst(Shared):
    def forward(self, x: Tensor) -> Tensor:
        out = self.shared(x)
        for term in self.routed(x):
            out = out + term
        return x + out


class SharedBetween(Shared):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.routed(x)
        return a + b + (self.shared(x) + c) + d + x


class SharedAndGated(Shared):
    """Qwen2: the shared expert has a gate of its own."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.sigmoid(self.shared_gate(x)) * self.shared(x)
        for term in self.routed(x):
            out = out + term
        return out


class AsATree(Shared):
    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.routed(x)
        return (a + b) + (c + d)


class IntoABuffer(Shared):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), FEATURES, dtype=x.dtype)
        for term in self.routed(x):
            out.add_(term)
        return out * 2.5 + self.shared(x)


class ScaledTerms(Shared):
    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + 2.5 * (weights[:, e, None] * expert(x))
        return out


class WeightsScaled(Shared):
    """The columns are scaled, not the rows."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x) * 2.5
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + weights.narrow(1, e, 1) * expert(x)
        return out


class StackedParameters(Shared):
    """Matrices are slices of stacked parameters."""

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            hidden = torch.relu(x @ self.up[e].T + self.gate_up_bias[e, : self.up.shape[1]])
            out = out + (hidden @ self.down[e].T + self.down_bias[e]) * weights[:, e].unsqueeze(1)
        return out


class BySumOfStack(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.routed(x), 0).sum(0)


class BySumOfCat(Shared):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([t.unsqueeze(0) for t in self.routed(x)]).sum(0)


CHAINS: list[type[Mixture]] = [
    ResidualFirst, ResidualFirstInPlace, SharedFirst, SharedBetween, SharedAndGated, AsATree,
    IntoABuffer, ScaledTerms, WeightsScaled, StackedParameters, BySumOfStack, BySumOfCat,
]  # fmt: skip
