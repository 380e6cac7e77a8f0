"""All experts run, and the rows of the chosen ones are taken: together, or choice by choice; and
what takes other rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import CHOICES, EXPERTS, FEATURES, Mixture, Plain
from .lookalikes import LookAlike


class OfAll(Mixture):
    """A subclass says how rows are taken; they are added up choice by choice."""

    def every(self, x: Tensor) -> Tensor:
        """`(E, T, D)`."""
        return torch.stack([expert(x) for expert in self.experts])

    def take(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """`(T, D)`, of one choice."""
        return rows[chosen, torch.arange(rows.shape[1])]

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = self.every(x)
        taken = (self.take(rows, chosen[:, k]) * weights[:, k, None] for k in range(CHOICES))
        return sum(taken)  # type: ignore[return-value]


class Transposed(OfAll):
    """Tokens first, of stacked matrices."""

    def take(self, rows: Tensor, chosen: Tensor) -> Tensor:
        return rows.transpose(0, 1)[torch.arange(rows.size(1), device=rows.device), chosen, :]

    def every(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->eth", x, self.up).relu() ** 2
        return torch.einsum("eth,edh->etd", hidden, self.down)


class GatheredOneByOne(OfAll):
    """Added to a residual in place."""

    expert = Plain

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows, out = torch.stack([expert(x) for expert in self.experts], 1), x.clone()
        for k in range(CHOICES):
            index = chosen[:, k, None, None].expand(-1, 1, FEATURES)
            out += rows.gather(1, index).squeeze(1) * weights[:, k : k + 1]
        return out


class TakenTogether(OfAll):
    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = self.every(x)[chosen, torch.arange(len(x)).unsqueeze(-1)]
        return torch.einsum("tk,tkd->td", weights, rows)


class InSequences(OfAll):
    """Tokens in two dimensions, each with its own positions."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        weights, chosen = F.softmax(self.gate(x), -1).topk(CHOICES, -1)
        rows = torch.stack([expert(x) for expert in self.experts], 2)
        batch, at = torch.arange(2)[:, None], torch.arange(x.shape[1])
        taken = [rows[batch, at, chosen[..., k]] * weights[..., k, None] for k in range(CHOICES)]
        return taken[0] + x + taken[1]


class FromTheEnd(OfAll):
    """Negative numbers of experts."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().route(x)
        return weights, chosen - EXPERTS


TAKEN: list[type[Mixture]] = [
    OfAll, Transposed, GatheredOneByOne, TakenTogether, InSequences, FromTheEnd,
]  # fmt: skip


class OtherWeights(OfAll):
    """The weight of the other choice."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = self.every(x)
        taken = (self.take(rows, chosen[:, k]) * weights[:, 1 - k, None] for k in range(CHOICES))
        return sum(taken)  # type: ignore[return-value]


class OtherRouter(OfAll):
    """The second choice is that of another router."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        _, other = (x @ self.up[0, :EXPERTS].T).topk(CHOICES, -1)
        rows = self.every(x)
        return weights[:, 0, None] * self.take(rows, chosen[:, 0]) + (
            weights[:, 1, None] * self.take(rows, other[:, 1])
        )


class StopsEarly(OfAll):
    choices = CHOICES + 1


class OneTwice(OfAll):
    """The first choice is taken twice."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = self.every(x)
        taken = [self.take(rows, chosen[:, 0]) * weights[:, 0, None] for _ in range(CHOICES)]
        return taken[0] + taken[1]


class OtherTokensRows(OfAll):
    """Rows of other tokens."""

    def take(self, rows: Tensor, chosen: Tensor) -> Tensor:
        return rows[chosen, torch.arange(rows.shape[1]).flip(0)]


class MoreTokens(OfAll):
    """There are more rows than are taken."""

    def every(self, x: Tensor) -> Tensor:
        return super().every(torch.cat([x, 2 * x]))

    def take(self, rows: Tensor, chosen: Tensor) -> Tensor:
        return rows[chosen, torch.arange(rows.shape[1] // 2)]


class WrongAxis(OfAll):
    """As many tokens as experts, and the token is taken for the expert."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:EXPERTS])

    def take(self, rows: Tensor, chosen: Tensor) -> Tensor:
        return rows[torch.arange(EXPERTS), chosen]


class PartOfTheRows(OfAll):
    def take(self, rows: Tensor, chosen: Tensor) -> Tensor:
        return rows[: EXPERTS - 1][chosen % (EXPERTS - 1), torch.arange(rows.shape[1])]


class OtherStackOnce(OfAll):
    """Two experts are swapped for the second choice."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = self.every(x)
        other = torch.stack([self.experts[e](x) for e in (1, 0, 2, 3)])
        return weights[:, 0, None] * self.take(rows, chosen[:, 0]) + (
            weights[:, 1, None] * self.take(other, chosen[:, 1])
        )


class OtherFeatures(OfAll):
    """Each feature is that of another expert."""

    def take(self, rows: Tensor, chosen: Tensor) -> Tensor:
        index = (chosen[:, None] + torch.arange(FEATURES)) % EXPERTS
        return rows.gather(0, index[None]).squeeze(0)


class WrittenRows(OfAll):
    """What experts gave is written to before it is taken."""

    def every(self, x: Tensor) -> Tensor:
        rows = super().every(x)
        rows[1] = 0.5
        return rows


LOOK_ALIKES = [
    LookAlike(OtherStackOnce, parts=2),
    *(LookAlike(module) for module in (
        OtherWeights, OtherRouter, StopsEarly, OneTwice, OtherTokensRows, MoreTokens, WrongAxis,
        PartOfTheRows, OtherFeatures, WrittenRows,
    )),
]  # fmt: skip
