"""Mixtral's experts, as transformers wrote them until version 4, in one graph.

The loop asks which tokens chose an expert, which breaks the graph of `torch.compile`.
`fuser.compile` captures it whole, and what the loop adds up becomes one operator that sends each
token through the experts that it chose, whatever the routing is: no recompile from one batch to the
next. Results and all gradients, the router's included, are compared with eager's by fp64.

    python -m examples.mixture_of_experts
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import fuser

WIDTH, HIDDEN, EXPERTS, CHOICES, TOKENS = 64, 96, 8, 2, 48
FACTOR = 3.0
"""At most so many times eager's own error."""


class Expert(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """Softmax over experts, the two best of each token, their weights renormalised."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = F.softmax(self.router(x), -1).topk(CHOICES, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        hit = F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            choice, token = torch.where(hit[number])
            rows = expert(x[token]) * weights[token, choice, None]
            out.index_add_(0, token, rows)
        return out


def outcome(step: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of a number that all of it goes into."""
    out = step(x)
    ramp = torch.linspace(0.5, 1.5, out.numel(), dtype=x.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * ramp).sum(), list(model.parameters()))]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest difference of all, over the largest number of its tensor."""
    pairs = zip(found, exact, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def main() -> None:
    torch.manual_seed(0)
    model = Mixture()
    wide = copy.deepcopy(model).double()
    options = {"fuser.policy": "always", "fuser.inner": "aot_eager"}  # no code for so small a model
    compiled = fuser.compile(model, options=options)
    for batch in range(3):
        x = torch.randn(TOKENS, WIDTH)
        exact = outcome(wide, wide, x.double())
        ours, eager = (error(outcome(step, model, x), exact) for step in (compiled, model))
        print(f"batch {batch}: fuser is {ours:.1e} from fp64, eager {eager:.1e}")
        assert ours <= FACTOR * eager + 1e-7
    graphs = counters["stats"]["unique_graphs"]
    print(f"{counters['fuser']['moe.loop']} mixture in {graphs} graph, for three routings")
    assert graphs == 1


if __name__ == "__main__":
    main()
