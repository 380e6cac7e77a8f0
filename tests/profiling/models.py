"""What is profiled, for the command line: `(model, inputs)`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

HERE = Path(__file__)


class Block(nn.Module):
    """Causal attention with projections, and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        each = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(each).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) * each[-1] ** -0.5
        probabilities = scores.masked_fill(~self.keep(length), -torch.inf).softmax(-1)
        return x + self.out((probabilities @ v).transpose(1, 2).reshape(x.shape))

    def keep(self, length: int) -> Tensor:
        return torch.ones(length, length, dtype=torch.bool).tril()


class Masked(Block):
    """The same with a mask that it holds, for so many positions."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__(width, heads)
        self.register_buffer("mask", super().keep(length))

    def keep(self, length: int) -> Tensor:
        return self.mask[:length, :length]


def block() -> tuple[nn.Module, tuple[Tensor]]:
    """Two layers, in inference."""
    torch.manual_seed(0)
    return nn.Sequential(Block(256, 4), Block(256, 4)).eval(), (torch.randn(1, 768, 256),)


class Checkpointed(nn.Module):
    """Layers whose activations are computed again in the backward."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x.sum()


def small() -> tuple[nn.Module, tuple[Tensor]]:
    """One that is quick to count."""
    return Block(32, 2).eval(), (torch.randn(1, 16, 32),)


def raises() -> tuple[object, tuple[()]]:
    """A model that fails."""

    def fails() -> None:
        raise ValueError("as it should")

    return fails, ()
