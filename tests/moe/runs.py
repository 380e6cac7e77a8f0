"""Experts whose rows come in runs: modules that take rows and how many each expert has.

Rows are more than all counts together where `extra` says so.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import grouped

EXPERTS, FEATURES, HIDDEN, ROWS = 3, 16, 24, 12
COUNTS = (5, 0, 7)
READS: dict[str, Any] = {"capture_scalar_outputs": True}
"""What Dynamo needs to have numbers of a tensor in a graph."""


class Local(nn.Module):
    """A subclass says what is made of rows."""

    extra = 0
    dtype = torch.float32
    """Of products, in eager and compiled."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * 0.3)

        self.w1, self.w3 = made(EXPERTS, HIDDEN, FEATURES), made(EXPERTS, HIDDEN, FEATURES)
        self.w2 = made(EXPERTS, FEATURES, HIDDEN)
        self.gate_up = made(EXPERTS, FEATURES, 2 * HIDDEN)
        self.b1, self.b2 = made(EXPERTS, HIDDEN), made(EXPERTS, FEATURES)
        self.square = made(EXPERTS, FEATURES, FEATURES)
        self.scores = made(ROWS + self.extra)
        experts = [
            nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, FEATURES))
            for _ in range(EXPERTS)
        ]
        self.experts = nn.ModuleList(experts)

    def product(self, rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        """Torch's own takes bf16 alone."""
        own = torch._grouped_mm if rows.dtype is torch.bfloat16 else grouped
        return own(rows, matrices, offs=ends)

    def low(self, x: Tensor) -> Tensor:
        """In the dtype of products, but for runs in fp64."""
        return x if x.dtype is torch.float64 else x.to(self.dtype)


class Gated(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0, dtype=torch.int32)
        gate, up = self.product(rows, self.gate_up, ends).chunk(2, -1)
        return self.product(F.silu(gate) * up, self.w2.mT, ends)


class EndsGiven(Local):
    """Behind them there are rows of nobody."""

    extra = 4

    def forward(self, rows: Tensor, ends: Tensor) -> Tensor:
        ends = ends.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends)
        hidden = F.dropout(hidden.square(), 0.1, training=False)
        return self.product(hidden, self.w2.transpose(-2, -1), ends)


class Titan(Local):
    """torchtitan's `_run_experts_grouped_mm`."""

    dtype = torch.bfloat16

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        offsets = torch.cumsum(counts, dim=0, dtype=torch.int32)
        h = F.silu(self.product(self.low(x), self.low(self.w1).transpose(-2, -1), offsets))
        h = h * self.product(self.low(x), self.low(self.w3).transpose(-2, -1), offsets)
        return self.product(h, self.low(self.w2).transpose(-2, -1), offsets).type_as(x)


class ByName(Local):
    """The public function, and what it is given by name."""

    dtype = torch.bfloat16

    def product(self, rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        if rows.dtype is not torch.bfloat16:
            return super().product(rows, matrices, ends)
        return F.grouped_mm(mat_a=rows, mat_b=matrices, offs=ends)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = self.product(self.low(x), self.low(self.w1).mT, ends).relu()
        return self.product(hidden, self.low(self.w2).mT, ends).type_as(x)


class TitanPadded(Titan):
    """torchtitan's `indices_padding_wrapper`: every run starts at a multiple of 8, between them
    are rows of zeros."""

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        padded = (counts + 7) // 8 * 8
        length = len(x) + 8 * EXPERTS
        starts, first = padded.cumsum(0) - padded, counts.cumsum(0) - counts
        at = torch.arange(length)[:, None]
        within = (at >= starts) & (at < starts + counts)
        places = torch.where(within, at - starts + first, 0).sum(1)
        places = torch.where(within.any(1), places, -1)
        x = torch.vstack((x, x.new_zeros(x.shape[-1])))
        out = super().forward(x[places], padded)
        unpermuted = out.new_zeros(x.shape)
        unpermuted[places] = out
        return unpermuted[:-1]


class Biased(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends, rest = counts.cumsum(0).int(), {"dim": 0, "output_size": len(rows)}
        hidden = self.product(rows, self.w1.mT, ends)
        hidden = F.gelu(hidden + self.b1.repeat_interleave(counts, **rest))
        out = self.product(hidden, self.w2.mT, ends)
        return out + self.b2.repeat_interleave(counts, **rest)


class WeightedInside(Local):
    """A row has a weight, before the last product."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = F.relu(self.product(rows, self.w1.mT, ends)) * self.scores[:, None]
        return self.product(hidden, self.w2.mT, ends)


class InTurn(Local):
    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        out: list[Tensor] = []
        for e, run in enumerate(x.split(counts.tolist())):
            out.append(F.relu(run @ self.w1[e].T) @ self.w2[e].T)
        return torch.cat(out)


class InTurnTitan(Local):
    """torchtitan's `_run_experts_for_loop`."""

    extra = 4

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        lengths = counts.tolist()
        padding = x.shape[0] - sum(lengths)
        splits = torch.split(x[: sum(lengths)], split_size_or_sections=lengths, dim=0)
        results: list[Tensor] = []
        for e, run in enumerate(splits):
            h = F.silu(torch.matmul(run, self.w1[e].transpose(-2, -1)))
            h = h * torch.matmul(run, self.w3[e].transpose(-2, -1))
            results.append(torch.matmul(h, self.w2[e].transpose(-2, -1)))
        out = torch.cat(results, dim=0)
        return torch.vstack((out, out.new_zeros((padding, out.shape[-1]))))


class InTurnModules(Local):
    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        runs = x.split(counts.tolist())
        return torch.cat([expert(run) for expert, run in zip(self.experts, runs, strict=True)])


class InTurnElsewhere(Local):
    """Matrices are not in the order of runs, and not all arranged alike."""

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        first, second, third = x.split(counts.tolist())
        parts = (first @ self.square[0], second @ self.square[1].T, third @ self.square[2])
        hidden = [part.relu() for part in parts]
        return torch.cat([h @ self.square[2 - e] for e, h in enumerate(hidden)])


GROUPED: list[type[Local]] = [
    Gated, EndsGiven, Titan, TitanPadded, Biased, WeightedInside, ByName,
]  # fmt: skip
IN_TURN: list[type[Local]] = [InTurn, InTurnTitan, InTurnModules, InTurnElsewhere]
