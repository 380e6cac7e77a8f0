"""Which mixtures are rewritten by default: those of which something measured says that it pays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compiled import Run, compiled


class Experts(nn.Module):
    """Gated experts as two stacks, and a router."""

    def __init__(self, experts: int, choices: int, features: int, hidden: int) -> None:
        super().__init__()
        self.choices = choices
        self.router = nn.Linear(features, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, features, 2 * hidden) * features**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, features) * hidden**-0.5)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = self.router(x).softmax(-1).topk(self.choices)
        return weights / weights.sum(-1, keepdim=True), indices


class Dense(Experts):
    """All experts on all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.route(x)
        dense = torch.zeros(len(x), len(self.up)).scatter(1, indices, weights)
        gate, up = torch.einsum("td,edi->eti", x, self.up).chunk(2, -1)
        rows = torch.einsum("eti,eid->etd", F.silu(gate) * up, self.down)
        return (rows * dense.t().unsqueeze(-1)).sum(0)


class Gathered(Experts):
    """The chosen experts' matrices for every token."""

    def forward(self, x: Tensor) -> Tensor:
        weights, indices = self.route(x)
        gate, up = torch.einsum("td,tkdi->tki", x, self.up[indices]).chunk(2, -1)
        rows = torch.einsum("tki,tkid->tkd", F.silu(gate) * up, self.down[indices])
        return (rows * weights[..., None]).sum(1)


def by_default(module: Experts, tokens: int, **options: str) -> Run:
    x = torch.randn(tokens, module.router.in_features)
    return compiled(module.eval(), (x,), policy="auto", **options)


@pytest.mark.parametrize(
    ("tokens", "experts", "choices", "features", "hidden", "pays"),
    [
        (512, 8, 2, 128, 256, True),
        (16, 8, 2, 128, 256, False),  # matrices are read for two rows
        (512, 8, 2, 16, 16, False),  # little is left out
        (256, 64, 8, 64, 128, True),
        (1, 64, 2, 256, 512, True),  # most matrices are not read
        (1, 8, 2, 256, 512, False),
        (512, 4, 4, 128, 256, False),
    ],
)
def test_all_experts_on_all_tokens(
    tokens: int, experts: int, choices: int, features: int, hidden: int, pays: bool
) -> None:
    found = by_default(Dense(experts, choices, features, hidden), tokens)
    assert found.rewrites("moe") == pays, found.reasons()
    if not pays:
        assert "for a CPU to gain by leaving others out" in found.reasons()


def test_the_chosen_experts_alone() -> None:
    found = by_default(Gathered(8, 2, 128, 256), 512)
    assert found.rewrites("moe") == 0
    assert "the chosen experts alone are computed already" in found.reasons()


def test_a_lowering_that_was_asked_for() -> None:
    found = by_default(Dense(8, 2, 16, 16), 4, **{"fuser.lowering": "aten"})
    assert found.rewrites("moe") == 1, found.reasons()
