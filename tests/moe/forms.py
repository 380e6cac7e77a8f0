"""Mixtures of experts as people write them: modules that take `(tokens, features)`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations import moe as _moe  # noqa: F401  registers the operator

grouped = torch.ops.transformers.grouped_mm_fallback

FEATURES, HIDDEN, EXPERTS, CHOICES, TOKENS = 16, 24, 4, 2, 10


class Mlp(nn.Module):
    """Mixtral's expert."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Linear(FEATURES, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, FEATURES, bias=False)
        self.w3 = nn.Linear(FEATURES, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Plain(nn.Module):
    """Switch's expert, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.dropout(F.gelu(self.up(x)), 0.1, self.training))


class Mixture(nn.Module):
    """A router and experts, as modules and as stacked parameters."""

    expert: type[nn.Module] = Mlp
    choices = CHOICES

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * 0.3)

        self.gate = nn.Linear(FEATURES, EXPERTS, bias=False)
        self.gate.weight = made(EXPERTS, FEATURES)
        self.experts = nn.ModuleList(self.expert() for _ in range(EXPERTS))
        self.gate_up, self.down = (
            made(EXPERTS, 2 * HIDDEN, FEATURES),
            made(EXPERTS, FEATURES, HIDDEN),
        )
        self.up = made(EXPERTS, HIDDEN, FEATURES)
        self.gate_up_bias, self.down_bias = made(EXPERTS, 2 * HIDDEN), made(EXPERTS, FEATURES)
        self.correction = made(EXPERTS)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax, top-k, renormalised: weights and indices, `(T, K)`."""
        weights, chosen = torch.topk(F.softmax(self.gate(x), -1), self.choices, -1)
        return weights / weights.sum(-1, keepdim=True), chosen

    def weights(self, x: Tensor) -> Tensor:
        """Of all experts, `(T, E)`."""
        weights, chosen = self.route(x)
        return weights.new_zeros(len(x), EXPERTS).scatter(1, chosen, weights)


class Chain(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, out = self.weights(x), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            out = out + weights[:, e, None] * expert(x)
        return out


class ChainInPlace(Mixture):
    expert = Plain

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        out = weights[:, :1] * self.experts[0](x)
        for e in range(1, EXPERTS):
            out += self.experts[e](x) * weights.select(1, e).unsqueeze(-1)
        return out


class ChainIntoZeros(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        weights, out = self.weights(x).chunk(EXPERTS, dim=-1), torch.zeros_like(x)
        for weight, expert in zip(weights, self.experts, strict=True):
            out += weight * expert(x)
        return out


class ChainBySum(Mixture):
    """Python's `sum` starts with the number zero."""

    def forward(self, x: Tensor) -> Tensor:
        columns = self.weights(x).unbind(1)
        pairs = zip(columns, self.experts, strict=True)
        return sum(c[:, None] * expert(x) for c, expert in pairs)  # type: ignore[return-value]


class SharedExpert(Mixture):
    """One more expert for every token, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([expert(x) for expert in self.experts], 1)
        mixed = (out * self.weights(x)[..., None]).sum(1)
        return x + mixed + self.shared(x)


class Stack(Mixture):
    expert = Plain

    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([expert(x) for expert in self.experts], dim=-2)
        return torch.einsum("te,ted->td", self.weights(x), out)


class StackMatmul(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.weights(x).unsqueeze(1) @ out).squeeze(1)


class MaskedSoftmax(Mixture):
    """Top-k of logits, and a softmax of the others at -inf."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        top, chosen = logits.topk(self.choices, dim=-1)
        masked = torch.full_like(logits, -math.inf).scatter(-1, chosen, top)
        out = torch.stack([expert(x) for expert in self.experts])
        return torch.einsum("te,etd->td", masked.softmax(-1), out)


class MaskedFill(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        keep = torch.zeros_like(logits).scatter(1, logits.topk(self.choices, -1).indices, 1.0)
        weights = logits.masked_fill(~keep.bool(), -math.inf).softmax(-1)
        out = torch.stack([expert(x) for expert in self.experts], 1)
        return (weights[..., None] * out).sum(dim=1)


class OneHot(Mixture):
    """Probabilities times a mask, then renormalised."""

    def forward(self, x: Tensor) -> Tensor:
        probabilities = F.softmax(self.gate(x), -1)
        _, chosen = probabilities.topk(self.choices, -1)
        kept = probabilities * F.one_hot(chosen, EXPERTS).sum(1)
        weights = kept / kept.sum(-1, keepdim=True)
        out = torch.stack([expert(x) for expert in self.experts])
        return (weights.t()[..., None] * out).sum(0)


class Where(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        scores = torch.sigmoid(self.gate(x))
        chosen = (scores + self.correction).topk(self.choices, -1)[1]
        keep = F.one_hot(chosen, EXPERTS).sum(-2) > 0
        weights = torch.where(keep, scores, 0.0)
        out = torch.einsum("td,ehd->teh", x, self.up).relu().square()
        return torch.einsum("te,ted->td", weights, torch.einsum("teh,edh->ted", out, self.down))


class DenseEinsum(Mixture):
    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.gate_up) + self.gate_up_bias
        gate, up = hidden.chunk(2, -1)
        out = torch.einsum("teh,edh->ted", F.silu(gate) * up, self.down) + self.down_bias
        return torch.einsum("te,ted->td", self.weights(x), out)


class DenseBmm(Mixture):
    """GPT-OSS: all experts by bmm, gates and ups in turn, clamped; the weight comes after."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.repeat(EXPERTS, 1).view(EXPERTS, -1, FEATURES)
        hidden = torch.bmm(tokens, self.gate_up.transpose(1, 2)) + self.gate_up_bias[..., None, :]
        gate, up = hidden[..., ::2].clamp(max=7.0), hidden[..., 1::2].clamp(-7.0, 7.0)
        gated = (up + 1) * (gate * torch.sigmoid(gate * 1.702))
        out = torch.bmm(gated, self.down.transpose(1, 2)) + self.down_bias[..., None, :]
        weights = self.weights(x).transpose(0, 1)
        return (out * weights[..., None]).sum(dim=0)


class WeightFirst(Mixture):
    """Llama 4: tokens are weighted before they go through all experts."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        top, chosen = torch.topk(logits, self.choices, dim=1)
        scores = torch.full_like(logits, -math.inf).scatter_(1, chosen, top).transpose(0, 1)
        scores = torch.sigmoid(scores.float()).to(x.dtype)
        tokens = x.repeat(EXPERTS, 1) * scores.reshape(-1, 1)
        hidden = torch.bmm(tokens.view(EXPERTS, -1, FEATURES), self.gate_up.transpose(1, 2))
        gate, up = hidden.chunk(2, dim=-1)
        out = torch.bmm(up * F.silu(gate), self.down.transpose(1, 2))
        return out.reshape(EXPERTS, -1, FEATURES).sum(dim=0)


class Gathered(Mixture):
    """The matrices of the chosen experts, for each token."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        hidden = torch.einsum("td,tkhd->tkh", x, self.gate_up[chosen]) + self.gate_up_bias[chosen]
        gate, up = hidden.split(HIDDEN, -1)
        out = torch.einsum("tkh,tkdh->tkd", F.silu(gate) * up, self.down[chosen])
        return ((out + self.down_bias[chosen]) * weights[..., None]).sum(1)


class GatheredFlat(Mixture):
    """transformers' `batched_mm`."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        tokens, experts = x.repeat_interleave(self.choices, dim=0), chosen.reshape(-1)
        hidden = torch.bmm(self.gate_up[experts], tokens.unsqueeze(-1)).squeeze(-1)
        gate, up = hidden.chunk(2, -1)
        out = torch.bmm(self.down[experts], (F.gelu(gate) * up).unsqueeze(-1)).squeeze(-1)
        return (out * weights.reshape(-1, 1)).view(-1, self.choices, FEATURES).sum(1)


class GatheredResults(Mixture):
    """All experts run, then the chosen results are gathered."""

    expert = Plain

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.stack([expert(x) for expert in self.experts], 1)
        index = chosen.unsqueeze(-1).expand(-1, -1, FEATURES)
        return (out.gather(1, index) * weights.unsqueeze(-1)).sum(1)


class Top1(Mixture):
    choices = 1

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        hidden = torch.einsum("td,tkhd->tkh", x, self.up[chosen]).relu()
        return (torch.einsum("tkh,tkdh->tkd", hidden, self.down[chosen]) * weights[..., None]).sum(
            1
        )


class Batched(Mixture):
    """Tokens in two dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        weights, chosen = torch.topk(F.softmax(self.gate(x), -1), self.choices, -1)
        dense = torch.zeros_like(x[..., :EXPERTS]).scatter(-1, chosen, weights)
        out = torch.stack([expert(x) for expert in self.experts], 2)
        return (out * dense.unsqueeze(-1)).sum(2)


class Sorted(Mixture):
    """transformers' `grouped_mm`: choices sorted by expert, a product of each run of rows."""

    def rows(self, x: Tensor, offset: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted rows in the order of experts, that order, and its inverse."""
        weights, chosen = self.route(x)
        ids, order = chosen.reshape(-1).sort()
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        ends = torch.histc(ids.float(), EXPERTS, 0, EXPERTS - 1 + offset)
        ends = torch.cumsum(ends, 0, dtype=torch.int32)
        hidden = grouped(self.tokens(x, order), self.up.mT, offs=ends).relu()
        out = grouped(hidden, self.down.mT, offs=ends) + self.down_bias[ids]
        return out * weights.reshape(-1)[order, None], order, inverse

    def tokens(self, x: Tensor, order: Tensor) -> Tensor:
        return x[order // self.choices]

    def forward(self, x: Tensor) -> Tensor:
        rows, _, inverse = self.rows(x)
        return rows[inverse].view(-1, self.choices, FEATURES).sum(1)


FORMS: list[type[Mixture]] = [
    Chain, ChainInPlace, ChainIntoZeros, ChainBySum, SharedExpert, Stack, StackMatmul,
    MaskedSoftmax, MaskedFill, OneHot, Where, DenseEinsum, DenseBmm, WeightFirst, Gathered,
    GatheredFlat, Top1, Batched, Sorted, GatheredResults,
]  # fmt: skip
