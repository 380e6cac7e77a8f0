"""Rows sorted by their experts: how they are counted, ordered, and put back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import EXPERTS, FEATURES, Mixture, grouped


class Grouped(Mixture):
    """A subclass replaces one of the steps."""

    def sort(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Which expert each place has, and which choice."""
        order = flat.argsort(stable=True)
        return flat[order], order

    def counts(self, flat: Tensor) -> Tensor:
        return F.one_hot(flat, EXPERTS).sum(0)

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        """Rows of choices in the order of tokens, added up."""
        return rows[order.argsort()].view(-1, self.choices, FEATURES).sum(1)

    def tokens(self, x: Tensor, order: Tensor) -> Tensor:
        return x[order // self.choices]

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat = chosen.flatten()
        _, order = self.sort(flat)
        ends = self.counts(flat).cumsum(0).to(torch.int32)
        hidden = grouped(self.tokens(x, order), self.up.mT, offs=ends).relu()
        out = grouped(hidden, self.down.mT, offs=ends)
        return self.back(out * weights.flatten()[order].unsqueeze(-1), order)


class CountedByComparison(Grouped):
    def counts(self, flat: Tensor) -> Tensor:
        return (flat[:, None] == torch.arange(EXPERTS)[None]).sum(0)


class CountedByHistogram(Grouped):
    """torchtitan's bins."""

    def counts(self, flat: Tensor) -> Tensor:
        return torch.histc(flat.float(), bins=EXPERTS, min=0, max=EXPERTS)


class CountedByScatter(Grouped):
    def counts(self, flat: Tensor) -> Tensor:
        return torch.zeros(EXPERTS, dtype=torch.int64).scatter_add(0, flat, torch.ones_like(flat))


class EndsBySearch(Grouped):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        ids, order = chosen.flatten().sort()
        ends = torch.searchsorted(ids, torch.arange(EXPERTS), right=True).int()
        hidden = grouped(x[order // self.choices], self.up.mT, offs=ends).relu()
        out = grouped(hidden, self.down.mT, offs=ends)
        return self.back(out * weights.flatten()[order].unsqueeze(-1), order)


class SortedUnstably(Grouped):
    def sort(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        ids, order = torch.sort(flat, dim=0)
        return ids, order


class InverseByScatter(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return rows[inverse].view(-1, self.choices, FEATURES).sum(1)


class InverseByScatterIntoZeros(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        places = torch.arange(len(order))
        inverse = torch.zeros_like(order).scatter(0, order, places)
        return rows.index_select(0, inverse).view(-1, self.choices, FEATURES).sum(1)


class PutBackByCopy(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.zeros_like(rows).index_copy(0, order, rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class PutBackByAddition(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.zeros_like(rows).index_add(0, order, rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class PutBackByScatter(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        index = order[:, None].expand(-1, FEATURES)
        placed = torch.zeros_like(rows).scatter(0, index, rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class PutBackByStatement(Grouped):
    """DeepSeek's `moe_infer`."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.empty_like(rows)
        placed[order] = rows
        return placed.view(-1, self.choices, FEATURES).sum(1)


class PutBackInPlace(Grouped):
    """torchtitan's index, of rows and all features."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = rows.new_zeros(rows.shape)
        placed[order, :] = rows
        return placed.unflatten(0, (-1, self.choices)).sum(1)


class CopiedInPlace(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.zeros_like(rows)
        placed.index_copy_(0, order, rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class ScatteredInPlace(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.empty_like(rows)
        placed.scatter_(0, order[:, None].expand(-1, FEATURES), rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class PutInPlace(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        placed = torch.empty_like(rows)
        placed.index_put_((order,), rows)
        return placed.view(-1, self.choices, FEATURES).sum(1)


class AddedInPlace(Grouped):
    """What `index_add_` returns is not used."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        out = rows.new_zeros(len(order) // self.choices, FEATURES)
        out.index_add_(0, order // self.choices, rows)
        return out


class ScatterAddedInPlace(Grouped):
    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        out = rows.new_zeros(len(order) // self.choices, FEATURES)
        out.scatter_add_(0, (order // self.choices)[:, None].expand(-1, FEATURES), rows)
        return out * 2.0


class AddedToTokens(Grouped):
    """transformers: rows are added where their tokens are."""

    def back(self, rows: Tensor, order: Tensor) -> Tensor:
        count = len(order) // self.choices
        return rows.new_zeros(count, FEATURES).index_add(0, order // self.choices, rows)


class ScatteredToTokens(Grouped):
    """torchtitan: into what a shared expert gave."""

    def tokens(self, x: Tensor, order: Tensor) -> Tensor:
        index = (order // self.choices).reshape(-1, 1).expand(-1, FEATURES)
        return torch.gather(x, 0, index)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat = chosen.view(-1)
        order = torch.argsort(flat, stable=True)
        scores = weights.view(-1)[order]
        ends = torch.cumsum(
            torch.histc(flat.float(), bins=EXPERTS, min=0, max=EXPERTS), 0, dtype=torch.int32
        )
        rows = (self.tokens(x, order).float() * scores.reshape(-1, 1)).to(x.dtype)
        hidden = F.silu(grouped(rows, self.up.transpose(-2, -1), offs=ends))
        out = grouped(hidden, self.down.transpose(-2, -1), offs=ends).type_as(x)
        index = (order // self.choices).reshape(-1, 1).expand(-1, FEATURES)
        return self.experts[0](x).scatter_add(0, index, out)


class TwoProducts(ScatteredToTokens):
    """Weighted rows go through two products, and tell the dtype of the result."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat = chosen.view(-1)
        order = torch.argsort(flat, stable=True)
        ends = self.counts(flat).cumsum(0).to(torch.int32)
        scores = weights.view(-1)[order].reshape(-1, 1)
        rows = (self.tokens(x, order).float() * scores).to(x.dtype)
        first, second = self.gate_up.chunk(2, 1)
        hidden = F.silu(grouped(rows.to(x.dtype), first.mT, offs=ends))
        hidden = hidden * grouped(rows.to(x.dtype), second.mT, offs=ends)
        out = grouped(hidden, self.down.mT, offs=ends).type_as(rows)
        index = (order // self.choices).reshape(-1, 1).expand(-1, FEATURES)
        return torch.zeros_like(x).scatter_add(0, index, out)


class TokensRepeated(Grouped):
    """Tokens are repeated for their choices, and then sorted."""

    def tokens(self, x: Tensor, order: Tensor) -> Tensor:
        return x.repeat_interleave(self.choices, 0)[order]


class TokensByNumber(Grouped):
    """The numbers of tokens are sorted with their choices."""

    def tokens(self, x: Tensor, order: Tensor) -> Tensor:
        numbers = torch.arange(len(x)).repeat_interleave(self.choices)
        return x[numbers[order]]


class WeightedInOrder(Grouped):
    """Weights are multiplied with after rows are back in order."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        ids, order = chosen.flatten().sort()
        ends = self.counts(ids).cumsum(0).int()
        hidden = grouped(self.tokens(x, order), self.up.mT, offs=ends).relu()
        out = grouped(hidden, self.down.mT, offs=ends)[order.argsort()]
        return (out.view(-1, self.choices, FEATURES) * weights.unsqueeze(-1)).sum(1)


class WeightedAtTheEnd(Grouped):
    """By a product that adds choices up."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        ids, order = chosen.flatten().sort()
        ends = self.counts(ids).cumsum(0).int()
        hidden = grouped(self.tokens(x, order), self.up.mT, offs=ends).relu()
        out = grouped(hidden, self.down.mT, offs=ends)[order.argsort()]
        return torch.einsum("tk,tkd->td", weights, out.unflatten(0, (-1, self.choices)))


SORTED: list[type[Mixture]] = [
    Grouped, CountedByComparison, CountedByHistogram, CountedByScatter, EndsBySearch,
    SortedUnstably, InverseByScatter, InverseByScatterIntoZeros, PutBackByCopy, PutBackByAddition,
    PutBackByScatter, PutBackByStatement, PutBackInPlace, CopiedInPlace, ScatteredInPlace,
    PutInPlace, AddedInPlace, ScatterAddedInPlace, AddedToTokens, ScatteredToTokens, TwoProducts,
    TokensRepeated, TokensByNumber, WeightedInOrder, WeightedAtTheEnd,
]  # fmt: skip
