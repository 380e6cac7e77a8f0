"""Loops that add runs of sorted tokens where they are, one expert after the other, and loops that
add something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .forms import CHOICES, EXPERTS, FEATURES, Mixture


class Added(Mixture):
    """DeepSeekMoE's `moe_infer`: ends of runs, of experts up to the last one with tokens."""

    def ends(self, flat: Tensor) -> Any:
        return flat.bincount().cpu().numpy().cumsum(0)

    @torch.no_grad()
    def infer(self, x: Tensor, flat: Tensor, weights: Tensor) -> Tensor:
        cache = torch.zeros_like(x)
        idxs = flat.argsort()
        ends = self.ends(flat)
        token_idxs = idxs // CHOICES
        for i, end in enumerate(ends):
            start = 0 if i == 0 else ends[i - 1]
            if start == end:
                continue
            exp_token_idx = token_idxs[start:end]
            out = self.experts[i](x[exp_token_idx])
            out.mul_(weights[idxs[start:end]])
            index = exp_token_idx.view(-1, 1).repeat(1, x.shape[-1])
            cache.scatter_reduce_(0, index, out, reduce="sum")
        return cache

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        return x + self.infer(x, chosen.view(-1), weights.view(-1, 1))


class AddedByNumbers(Mixture):
    """Lengths of runs as Python's numbers; a subclass replaces one of the steps."""

    def counts(self, flat: Tensor) -> Any:
        return flat.bincount().tolist()

    def tokens(self, order: Tensor, count: int) -> Tensor:
        return order // CHOICES

    def is_left_out(self, count: Any) -> Any:
        return count == 0

    def weighted(self, rows: Tensor, weights: Tensor, run: Tensor) -> Tensor:
        return rows * weights[run]

    def put(self, out: Tensor, tokens: Tensor, rows: Tensor) -> None:
        out.scatter_add_(0, tokens[:, None].expand(-1, FEATURES), rows)

    def result(self, out: Tensor, counts: Any) -> Tensor:
        return out

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out, order = torch.zeros_like(x), chosen.flatten().argsort()
        counts = self.counts(chosen.flatten())
        tokens, flat, start = self.tokens(order, len(x)), weights.view(-1, 1), 0
        for e, count in enumerate(counts):
            end = start + count
            if self.is_left_out(count):
                continue
            own = tokens[start:end]
            rows = self.experts[e](x[own])
            self.put(out, own, self.weighted(rows, flat, order[start:end]))
            start = end
        return self.result(out, counts)


class AddedByStatement(AddedByNumbers):
    """Sums of all numbers, and nothing is left out."""

    def counts(self, flat: Tensor) -> Any:
        return torch.bincount(flat, minlength=EXPERTS).cumsum(0).tolist()

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        order, start, out = chosen.flatten().argsort(), 0, torch.zeros_like(x)
        for expert, end in zip(self.experts, self.counts(chosen.flatten()), strict=True):
            run = order[start:end]
            own = self.tokens(run, len(x))
            out[own] += expert(x[own]) * weights.flatten()[run].unsqueeze(-1)
            start = end
        return out


class AddedToOthers(AddedByNumbers):
    """Tokens are those of rows in another order."""

    def tokens(self, order: Tensor, count: int) -> Tensor:
        return order % count


class AddedWithOthers(AddedByNumbers):
    """Weights are those of the same place, and of another choice."""

    def weighted(self, rows: Tensor, weights: Tensor, run: Tensor) -> Tensor:
        return rows * weights[run.flip(0)]


class AddedElsewhere(AddedByNumbers):
    def put(self, out: Tensor, tokens: Tensor, rows: Tensor) -> None:
        out.index_add_(0, tokens.flip(0), rows)


class AddedAlone(AddedByNumbers):
    """What is there counts only once, if at all."""

    def put(self, out: Tensor, tokens: Tensor, rows: Tensor) -> None:
        index = tokens[:, None].expand(-1, FEATURES)
        out.scatter_reduce_(0, index, rows, reduce="sum", include_self=False)


class AddedNotOne(AddedByNumbers):
    """One token alone is left out as well."""

    def is_left_out(self, count: Any) -> Any:
        return count <= 1


class AddedOthers(AddedByNumbers):
    """Numbers are those of other choices."""

    def counts(self, flat: Tensor) -> Any:
        return (flat - EXPERTS + 1).abs().bincount().tolist()


class AddedLast(AddedByNumbers):
    """The last number may be missing."""

    def result(self, out: Tensor, counts: Any) -> Tensor:
        return out / counts[EXPERTS - 1]


class AddedNumbered(AddedByNumbers):
    """The last turn may be that of any expert."""

    def counts(self, flat: Tensor) -> Any:
        for self.last, count in enumerate(super().counts(flat)):
            yield count

    def result(self, out: Tensor, counts: Any) -> Tensor:
        return out / self.last


class AddedTurns(AddedByNumbers):
    """There are as many turns as numbers."""

    def counts(self, flat: Tensor) -> Any:
        self.turns = torch.zeros(())
        for count in super().counts(flat):
            self.turns = self.turns + 1.0
            yield count

    def result(self, out: Tensor, counts: Any) -> Tensor:
        return out / self.turns


class AddedMore(AddedByNumbers):
    """Experts without tokens add something, where they are told."""

    def is_left_out(self, count: Any) -> Any:
        self.gate.weight.data.mul_(0.5)
        return count == 0


ADDED = [Added, AddedByNumbers, AddedByStatement]
LOOK_ALIKES = [
    (AddedToOthers, "not proved"),
    (AddedWithOthers, "not proved"),
    (AddedElsewhere, "not proved"),
    (AddedAlone, "not proved"),
    (AddedNotOne, "may be others than those that tokens chose"),
    (AddedOthers, "not proved"),
    (AddedLast, "numbers of experts after the last one with tokens may be missing"),
    (AddedNumbered, "it changes objects of Python's"),
    (AddedTurns, "it changes objects of Python's"),
    (AddedMore, "not proved"),
]
