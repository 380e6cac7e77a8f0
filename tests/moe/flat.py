"""Loops over experts that write rows of choices, which are weighted and added up after them; loops
over choices in one dimension, and what only looks like them."""

from __future__ import annotations

import torch
from torch import Tensor

from .forms import CHOICES, EXPERTS, FEATURES, Mixture
from .lookalikes import LookAlike


class Flat(Mixture):
    """DeepSeek's published training forward; a subclass says how it differs."""

    def tokens(self, x: Tensor) -> Tensor:
        """Of each choice, `(T * K, D)`."""
        return x.repeat_interleave(self.choices, dim=0)

    def chosen(self, chosen: Tensor) -> Tensor:
        """In one dimension."""
        return chosen.view(-1)

    def rows(self, tokens: Tensor) -> Tensor:
        """What is written to."""
        return torch.empty_like(tokens)

    def read(self, flat: Tensor, e: int) -> Tensor:
        """Which rows an expert is given."""
        return flat == e

    def added(self, rows: Tensor, weights: Tensor) -> Tensor:
        return (rows.view(*weights.shape, -1) * weights.unsqueeze(-1)).sum(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, tokens = self.chosen(chosen), self.tokens(x)
        rows = self.rows(tokens)
        for e, expert in enumerate(self.experts):
            rows[flat == e] = expert(tokens[self.read(flat, e)]).to(rows.dtype)
        return self.added(rows, weights)


class FlatMajor(Flat):
    """Choice by choice."""

    def tokens(self, x: Tensor) -> Tensor:
        return x.repeat(self.choices, 1)

    def chosen(self, chosen: Tensor) -> Tensor:
        return chosen.T.reshape(-1)

    def added(self, rows: Tensor, weights: Tensor) -> Tensor:
        return (rows.view(self.choices, -1, FEATURES) * weights.T[..., None]).sum(0)


class FlatCopied(Flat):
    """At positions, by `index_copy_`; weighted within the loop."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, each = chosen.reshape(-1), weights.reshape(-1)
        tokens = x[:, None].expand(-1, self.choices, -1).reshape(-1, FEATURES)
        rows = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            p = (flat == e).nonzero(as_tuple=True)[0]
            rows.index_copy_(0, p, expert(tokens.index_select(0, p)) * each[p, None])
        return rows.view(-1, self.choices, FEATURES).sum(1)


class FlatPairs(Mixture):
    """Rows in three dimensions, added up by a product."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = x.new_zeros(len(x), self.choices, FEATURES)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            rows[t, k] = expert(x[t])
        return torch.bmm(weights.unsqueeze(1), rows).squeeze(1)


class FlatColumns(FlatPairs):
    """Added up column by column."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = x.new_zeros(len(x), self.choices, FEATURES)
        for e, expert in enumerate(self.experts):
            rows[chosen == e] = expert(x[:, None].expand(-1, self.choices, -1)[chosen == e])
        return rows[:, 0] * weights[:, :1] + rows[:, 1] * weights[:, 1:]


class FlatAdded(Mixture):
    """Added where the token of a choice is."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, each, out = chosen.view(-1), weights.view(-1), torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            p = torch.where(flat == e)[0]
            t = self.token(p)
            out.index_add_(0, t, expert(x[t]) * each[p, None])
        return out

    def token(self, p: Tensor) -> Tensor:
        return p // self.choices


class FlatNumbered(Mixture):
    """The token of each choice is looked up."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, each, out = chosen.view(-1), weights.view(-1), torch.zeros_like(x)
        tokens = self.numbers(len(x))
        for e, expert in enumerate(self.experts):
            mask = flat == e
            out = out.index_add(0, tokens[mask], expert(x[tokens[mask]]) * each[mask][:, None])
        return out

    def numbers(self, count: int) -> Tensor:
        return torch.arange(count).repeat_interleave(self.choices)


FLAT: list[type[Mixture]] = [
    Flat, FlatMajor, FlatCopied, FlatPairs, FlatColumns, FlatAdded, FlatNumbered
]  # fmt: skip


class OtherChoices(Flat):
    """An expert is given as many rows, of which each is the other choice's."""

    def read(self, flat: Tensor, e: int) -> Tensor:
        return (flat.view(-1, CHOICES).flip(1) == e).view(-1)

    def tokens(self, x: Tensor) -> Tensor:
        return torch.stack([x, 2 * x], 1).view(-1, FEATURES)


class OtherOrder(Flat):
    """Tokens come choice by choice, and choices token by token."""

    def tokens(self, x: Tensor) -> Tensor:
        return x.repeat(self.choices, 1)


class OtherSums(Flat):
    """Rows of different tokens are added up."""

    def added(self, rows: Tensor, weights: Tensor) -> Tensor:
        return (rows.view(CHOICES, -1, FEATURES) * weights.T[..., None]).sum(0)


class NotZeros(Flat):
    """Experts add to what was there."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, tokens = self.chosen(chosen), self.tokens(x)
        rows = torch.ones_like(tokens)
        for e, expert in enumerate(self.experts):
            p = torch.where(flat == e)[0]
            rows = rows.index_add(0, p, expert(tokens[p]))
        return self.added(rows, weights)


class ReadEarly(Flat):
    """One of two columns is read before the experts have written it."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows = x.new_zeros(len(x), self.choices, FEATURES)
        early = rows[:, 0].clone() * weights[:, :1]
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            rows[t, k] = expert(x[t])
        return early + rows[:, 1] * weights[:, 1:]


class WrittenBetween(Flat):
    """The choices are others when the second mask is made."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, tokens = chosen.reshape(-1).clone(), self.tokens(x)
        rows = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            given = tokens[flat == e]
            flat[:] = flat.view(-1, CHOICES).flip(1).reshape(-1)
            rows[flat == e] = expert(given)
        return self.added(rows, weights)


class OneIsMissing(Flat):
    """Rows of the last expert are never written."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, tokens = self.chosen(chosen), self.tokens(x)
        rows = torch.ones_like(tokens)
        for e, expert in enumerate(self.experts[: EXPERTS - 1]):  # type: ignore[arg-type]
            rows[flat == e] = expert(tokens[flat == e])
        return self.added(rows, weights)


class NextToken(FlatAdded):
    """Rows are added one choice further."""

    def token(self, p: Tensor) -> Tensor:
        return (p + 1) // self.choices % 10


class FewerTokens(FlatAdded):
    """Tokens are counted as if each had more choices."""

    def token(self, p: Tensor) -> Tensor:
        return p // (2 * self.choices)


class MajorNumbers(FlatNumbered):
    """The numbers of tokens come choice by choice."""

    def numbers(self, count: int) -> Tensor:
        return torch.arange(count).repeat(self.choices)


class BeforeAndAfter(Mixture):
    """One expert is given weighted tokens, the others give rows that are weighted."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, k = torch.where(chosen == e)
            weight = weights[t, k, None]
            out.index_add_(0, t, expert(x[t]) * weight if e else expert(x[t] * weight))
        return out


FLAT_LOOKALIKES = [
    LookAlike(OneIsMissing, "tokens may keep what was there before the loop"),
    LookAlike(NotZeros, "experts add to what was there before the loop"),
    LookAlike(ReadEarly, "rows are read before all experts have written theirs"),
    LookAlike(OtherChoices, "experts are given different tensors"),
    LookAlike(OtherOrder, "rows of several tokens start from the same numbers"),
    LookAlike(OtherSums, "rows of several tokens start from the same numbers"),
    LookAlike(WrittenBetween, "a tensor is written to before the experts have read it"),
    LookAlike(FewerTokens, "a mask has another number of tokens than the result"),
    LookAlike(BeforeAndAfter, "some experts are given weighted tokens"),
    LookAlike(NextToken, "a size depends on data"),
    LookAlike(MajorNumbers, "a size depends on data"),
]
