"""Small models with known attentions, for the reports; tests find lines by their comments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve()
WIDTH, HEADS = 32, 4


def line_of(mark: str) -> int:
    """Number of the line of this file that ends with a comment."""
    lines = HERE.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"  # {mark}")]
    return number


class SelfAttention(nn.Module):
    """Attention; `leaky` returns its probabilities, `broken` prints between scores and softmax."""

    def __init__(self, leaky: bool = False, broken: bool = False) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.leaky, self.broken = leaky, broken

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) * 0.25  # scores
        if self.broken:
            print("a graph ends here")  # break
        p = scores.softmax(-1)  # softmax
        out = (p @ v).transpose(1, 2).reshape(b, s, WIDTH)  # anchor
        return out, p if self.leaky else None


class Encoder(nn.Module):
    """A stack of attentions."""

    def __init__(self, *layers: SelfAttention | Block) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        leaked: list[Tensor] = []
        for layer in self.layers:
            out, p = layer(x)
            x = x + out
            if p is not None:
                leaked.append(p)
        return x, leaked


class RMSNorm(nn.Module):
    """As model files spell it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * scale * self.weight


class Block(nn.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self, leaky: bool = False) -> None:
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(), SelfAttention(leaky)
        self.mlp_norm = RMSNorm()
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        out, p = self.attn(self.attn_norm(x))
        x = x + out
        h = self.mlp_norm(x)
        return self.down(nn.functional.silu(self.gate(h)) * self.up(h)), p


class Stateful(nn.Module):
    """Counts its calls in a buffer, and draws random numbers."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.dropout(self.norm(x), 0.5) + torch.rand(WIDTH)


def tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, 64, WIDTH)


def tiny() -> tuple[nn.Module, tuple[Tensor]]:
    """For the command line."""
    return Encoder(SelfAttention(), SelfAttention(leaky=True)).eval(), (tokens(),)


def deep(layers: int = 30, leaky: int = 17) -> Encoder:
    """A decoder, one layer of which returns its probabilities."""
    return Encoder(*(Block(leaky=i == leaky) for i in range(layers)))


def tiny_by_name() -> tuple[nn.Module, dict[str, Tensor]]:
    return Encoder(SelfAttention()).eval(), {"x": tokens()}


def tiny_both_ways() -> tuple[Any, tuple[Tensor], dict[str, float]]:
    def scaled(x: Tensor, scale: float) -> Tensor:
        return (x @ x.mT * scale).softmax(-1) @ x

    return scaled, (tokens(),), {"scale": 0.5}


def not_a_pair() -> int:
    return 3


def wrong_inputs() -> tuple[nn.Module, Tensor]:
    return Encoder(SelfAttention()), torch.zeros(3)


def raises() -> None:
    raise ValueError("the weights are missing")
