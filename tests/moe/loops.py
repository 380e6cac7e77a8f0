"""Mixtures as loops over experts that are captured whole where sizes may depend on data.

Each takes `(tokens, features)`; the trip count is static, the rows of an expert are not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import EXPERTS, FEATURES, Mixture, Plain

CAPTURE: dict[str, Any] = {"capture_dynamic_output_shape_ops": True}
"""What Dynamo needs for a loop to be one graph; `fuser.compile` sets it for one model."""


class MixtralLoop(Mixture):
    """transformers v4."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros((len(x), FEATURES), dtype=x.dtype, device=x.device)
        mask = F.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        for e in range(EXPERTS):
            idx, top_x = torch.where(mask[e])
            current = x[None, top_x].reshape(-1, FEATURES)
            current = self.experts[e](current) * weights[top_x, idx, None]
            out.index_add_(0, top_x, current.to(x.dtype))
        return out


class MixtralBlock(Mixture):
    """The whole block, with what stands around the loop; the router's logits are returned too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.view(2, -1, FEATURES)
        batch, length, width = x.shape
        x = x.view(-1, width)
        logits = self.gate(x)
        weights = F.softmax(logits, dim=1, dtype=torch.float)
        weights, chosen = torch.topk(weights, self.choices, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        weights = weights.to(x.dtype)
        out = torch.zeros((batch * length, width), dtype=x.dtype, device=x.device)
        mask = F.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        for e in range(EXPERTS):
            idx, top_x = torch.where(mask[e])
            current = x[None, top_x].reshape(-1, width)
            current = self.experts[e](current) * weights[top_x, idx, None]
            out.index_add_(0, top_x, current.to(x.dtype))
        return out.reshape(batch, length, width), logits


class SharedInPlace(Mixture):
    """One more expert for every token, added in place to what the loop gave."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Plain()

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out[t] += expert(x[t]) * weights[t, k, None]
        out += self.shared(x)
        return out.mul_(2.0)


class MistralLoop(Mixture):
    """Mistral's reference."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.topk(self.gate(x), self.choices)
        weights = F.softmax(weights, dim=1, dtype=torch.float).to(x.dtype)
        results = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            batch, nth = torch.where(chosen == i)
            results[batch] += weights[batch, nth, None] * expert(x[batch])
        return results


class StackedLoop(Mixture):
    """Matrices of all experts in one tensor each, as transformers v5 keeps them."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        mask = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for e in range(EXPERTS):
            k, t = torch.where(mask[e] > 0)
            gate, up = F.linear(x[t], self.gate_up[e], self.gate_up_bias[e]).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, self.down[e], self.down_bias[e])
            out = out.index_add(0, t, y * weights[t, k].unsqueeze(-1))
        return out


class TransposedLoop(Mixture):
    """Matrices as `x @ m` wants them; the weight comes before the expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = x.new_zeros(x.shape)
        for e in range(EXPERTS):
            t, k = (chosen == e).nonzero(as_tuple=True)
            tokens = x.index_select(0, t) * weights[t, k][:, None]
            out[t, :] = out[t, :] + (tokens @ self.up[e].T).relu() @ self.down[e].T
        return out


class ResidualLoop(Mixture):
    """Experts add to a residual, in an order of their own."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = x.clone()
        for e in reversed(range(EXPERTS)):
            pairs = torch.nonzero(chosen == e)
            t, k = pairs[:, 0], pairs[:, 1]
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class Top1Nonzero(Mixture):
    expert = Plain

    def forward(self, x: Tensor) -> Tensor:
        probability, choice = F.softmax(self.gate(x), -1).max(-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            idx = (choice == e).nonzero().squeeze(-1)
            out[idx] = expert(x[idx]) * probability[idx].unsqueeze(-1)
        return out


class Top1Mask(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        probability, choice = F.softmax(self.gate(x), -1).max(-1, keepdim=True)
        out = torch.empty_like(x)
        for e, expert in enumerate(self.experts):
            mask = choice.squeeze(-1) == e
            out[mask] = expert(x[mask]) * probability[mask]
        return out


class Top1Onto(Mixture):
    """Out of place, onto the tokens themselves."""

    def forward(self, x: Tensor) -> Tensor:
        probabilities = F.softmax(self.gate(x), -1)
        choice = probabilities.argmax(-1)
        probability, out = probabilities.amax(-1), x
        for e, expert in enumerate(self.experts):
            idx = torch.nonzero(choice == e, as_tuple=True)[0]
            out = out.index_add(0, idx, expert(x[idx]) * probability[idx, None])
        return out


class BatchedMask(Mixture):
    """Tokens in two dimensions, chosen by masks of two."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        probability, choice = F.softmax(self.gate(x), -1).max(-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = choice == e
            out[mask] += expert(x[mask]) * probability[mask][:, None]
        return out


class Unweighted(Mixture):
    """Results of experts as they are; how likely the choice was comes after the loop."""

    def forward(self, x: Tensor) -> Tensor:
        probability, choice = F.softmax(self.gate(x), -1).max(-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = choice == e
            out[mask] = expert(x[mask])
        return probability[:, None] * out


class FlatLoop(Mixture):
    """Tokens in two dimensions, flattened for the loop."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        weights, chosen = self.route(x)
        flat = x.reshape(-1, FEATURES)
        weights, chosen = weights.view(-1, self.choices), chosen.view(-1, self.choices)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            token, k = torch.where(chosen == e)
            out.index_add_(0, token, expert(flat[token]) * weights[token, k, None])
        return out.view(x.shape)


class SwitchLoop(Mixture):
    """Experts have room for three tokens each; those that come later are dropped."""

    expert = Plain
    capacity = 3

    def forward(self, x: Tensor) -> Tensor:
        probability, choice = F.softmax(self.gate(x), -1).max(-1)
        hot = F.one_hot(choice, EXPERTS)
        hot = hot * (hot.cumsum(0) <= self.capacity)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = hot[:, e].bool()
            out[mask] = expert(x[mask])
        return probability[:, None] * out


class SwitchBatched(Mixture):
    """The same for each sequence, in the steps of transformers, with a loop over all experts."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        probabilities = F.softmax(self.gate(x), -1)
        hot = F.one_hot(probabilities.argmax(-1), EXPERTS)
        hot = hot * (torch.cumsum(hot, dim=-2) <= 2)
        weights = probabilities.max(-1).values.unsqueeze(-1).view(-1, 1)
        flat, mask = x.view(-1, FEATURES), hot.view(-1, 1, EXPERTS).permute(2, 1, 0)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            idx, top_x = torch.where(mask[e])
            current = flat[None, top_x].reshape(-1, FEATURES)
            out.index_add_(0, top_x, expert(current) * weights[top_x, idx, None])
        return out.view(x.shape)


class CapacityOfChoices(Mixture):
    """Two choices, each of which may be dropped."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        hot = F.one_hot(chosen, EXPERTS).bool()
        room = hot.view(-1, EXPERTS).cumsum(0).view(hot.shape) <= 4
        hot = hot & room
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(hot[..., e])
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class ShiftedIndices(Mixture):
    """Tokens whose choice is no expert are left out."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        chosen = chosen * 2 - 3
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, k, None])
        return out


class LastExpertUnused(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS - 1):
            t, k = torch.where(chosen == e)
            out.index_add_(0, t, self.experts[e](x[t]) * weights[t, k, None])
        return out


class ScaledLoop(Mixture):
    """Weights have a factor, and are divided and cast, for the rows of each expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            own = (0.5 * weights[t, k, None]).to(x.dtype) / 0.25
            out.index_add_(0, t, expert(x[t]) * own)
        return out


class WeightedTwice(Mixture):
    """Two numbers of a token, multiplied for the rows of each expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        trust, out = x.square().mean(-1), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            own = weights[t, k] * trust[t]
            out[t] += expert(x[t]) * own.unsqueeze(-1)
        return out


class TransposedOnce(Mixture):
    """One expert's matrices are taken the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(self.up.detach()[:, :FEATURES].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            t, k = torch.where(chosen == e)
            own = self.square[e].T if e == 1 else self.square[e]
            out.index_add_(0, t, (x[t] @ own).relu() @ own * weights[t, k, None])
        return out


LOOPS: list[type[Mixture]] = [
    MixtralLoop, MixtralBlock, SharedInPlace, MistralLoop, StackedLoop, TransposedLoop,
    ResidualLoop, Top1Nonzero, Top1Mask, Top1Onto, BatchedMask, FlatLoop, SwitchLoop,
    SwitchBatched, CapacityOfChoices, ShiftedIndices, LastExpertUnused, Unweighted,
    ScaledLoop, WeightedTwice, TransposedOnce,
]  # fmt: skip
