"""Training with activation checkpointing: the same losses as eager, attention fused inside.

Each block of a small GPT is checkpointed, so that what Dynamo captures of it is the body of a
higher-order op. fuser rewrites there too, and the fused attention is what is run again in the
backward pass.

    python -m examples.training
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from fuser.outlets import rewrites

VOCABULARY, WIDTH, HEADS, LAYERS, POSITIONS = 64, 64, 4, 2, 128
STEPS = 12


class Block(nn.Module):
    """Attention with a causal mask written by hand, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def attention(self, x: Tensor) -> Tensor:
        """softmax(q kᵀ / √d, keys up to the query's) v, for every head."""
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        future = torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.out((probabilities @ v).transpose(1, 2).reshape(b, s, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallGPT(nn.Module):
    """Embeddings, checkpointed blocks, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy of the next token."""
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def train(backend: str | None) -> list[float]:
    """Losses of `STEPS` steps on sequences that count upwards; None trains in eager."""
    torch.manual_seed(0)
    model = SmallGPT()
    step = model if backend is None else torch.compile(model, backend=backend)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    for _ in range(STEPS):
        start = torch.randint(0, VOCABULARY, (4, 1))
        ids = (start + torch.arange(POSITIONS + 1)) % VOCABULARY
        loss = step(ids[:, :-1], ids[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(backend: str = "fuser") -> None:
    """Trains in eager and compiled, and compares the losses."""
    counters["fuser"].clear()
    eager, compiled = train(None), train(backend)
    print(f"{'step':>4} {'eager':>8} {backend:>8}")
    for i, (a, b) in enumerate(zip(eager, compiled, strict=True)):
        print(f"{i:>4} {a:8.4f} {b:8.4f}")
    print("rewrites:", rewrites() or "none")
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
