"""Loops over experts that write rows of choices, which are weighted and added up after them; loops
over choices in one dimension, or with masks of tokens; and what only looks like them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fuser.soundness import SIZE_OF_DATA

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


class OfTokens(Mixture):
    """makeMoE: masks of tokens, and weights of all experts, read where a mask is true."""

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x)
        top, chosen = logits.topk(self.choices, -1)
        low = torch.full_like(logits, -math.inf)
        return low.scatter(-1, chosen, top).softmax(-1), chosen

    def mask(self, chosen: Tensor, e: int) -> Tensor:
        return (chosen == e).any(dim=-1)

    def column(self, e: int) -> int:
        return e

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        weights, chosen = self.gates(x)
        out, tokens, each = torch.zeros_like(x), x.view(-1, FEATURES), weights.view(-1, EXPERTS)
        for e, expert in enumerate(self.experts):
            mask = self.mask(chosen, e)
            flat = mask.view(-1)
            out[mask] += expert(tokens[flat]) * each[flat, self.column(e)].unsqueeze(1)
        return out.view(-1, FEATURES)


class OfTokensDense(OfTokens):
    """At positions, with weights that are zero nowhere: one column, then its rows."""

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).softmax(-1)
        return scores, scores.topk(self.choices, -1).indices

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gates(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t = self.mask(chosen, e).nonzero().squeeze(-1)
            out.index_add_(0, t, expert(x[t]) * weights[:, self.column(e)][t, None])
        return out


class OfAllExperts(OfTokensDense):
    """Masks of choices, and weights of all experts."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gates(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            t, _ = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, e, None])
        return out


class FlatHit(Flat):
    """Only experts that somebody chose are run."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        flat, tokens = chosen.view(-1), self.tokens(x)
        rows = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            mask = flat == e
            if mask.any():
                rows[mask] = expert(tokens[mask])
        return self.added(rows, weights)


class OfTokensHit(OfTokens):
    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gates(x)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gates(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = self.mask(chosen, e)
            if mask.any():
                out[mask] += (expert(x[mask]) * weights[mask, e].unsqueeze(1)).squeeze(1)
        return out


FLAT_HITS: list[type[Mixture]] = [FlatHit, OfTokensHit]
FLAT: list[type[Mixture]] = [
    Flat, FlatMajor, FlatCopied, FlatPairs, FlatColumns, FlatAdded, FlatNumbered,
    OfTokens, OfTokensDense, OfAllExperts,
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


class OtherColumn(OfTokens):
    """The weight of the next expert."""

    def column(self, e: int) -> int:
        return (e + 1) % EXPERTS


class OtherColumnFirst(OfTokensDense):
    """The weight of one expert for all."""

    def column(self, e: int) -> int:
        return 1


class OneIsLeftOut(OfAllExperts):
    """Choices of the last expert have no weight."""

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = super().gates(x)
        return weights[:, : EXPERTS - 1] + 0.0, chosen

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gates(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts[: EXPERTS - 1]):  # type: ignore[arg-type]
            t, _ = torch.where(chosen == e)
            out.index_add_(0, t, expert(x[t]) * weights[t, e, None])
        return out


class OfBoth(OfTokens):
    """Only tokens all of whose choices are the expert."""

    def mask(self, chosen: Tensor, e: int) -> Tensor:
        return (chosen == e).all(dim=-1)


class OfOthers(OfTokens):
    """Tokens that did not choose the expert."""

    def mask(self, chosen: Tensor, e: int) -> Tensor:
        return ~(chosen == e).any(dim=-1)


class ChosenTwice(OfTokensDense):
    """A token that chooses an expert twice goes through it once."""

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x).softmax(-1)
        return scores, torch.stack([scores.argmax(-1), (-scores).argmin(-1)], -1)


class TheLastOne(OfTokens):
    """An expert replaces what another one gave."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gates(x)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = self.mask(chosen, e)
            out[mask] = expert(x[mask]) * weights[mask, e].unsqueeze(1)
        return out


class OrderOfRows(Flat):
    """Rows of the same choices are read choice by choice, and written token by token."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        rows, tokens = x.new_zeros(len(x), CHOICES, FEATURES), torch.stack([x, x])
        for e, expert in enumerate(self.experts):
            rows[chosen == e] = expert(tokens[chosen.T == e])
        return (rows * weights[..., None]).sum(1)


COLUMN = "a row is weighted with the weight of another expert"
NOTHING = "nothing tells which expert the tokens of a mask chose"
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
    LookAlike(OneIsLeftOut, "a choice that may be no expert's has no weight"),
    LookAlike(OtherColumn, COLUMN),
    LookAlike(OtherColumnFirst, COLUMN),
    LookAlike(OfBoth, NOTHING),
    LookAlike(OfOthers, NOTHING),
    LookAlike(ChosenTwice, "a token that chooses an expert twice goes through it once"),
    LookAlike(TheLastOne, "an expert replaces what another one gave a token"),
    LookAlike(OrderOfRows, "experts are given different tensors"),
    LookAlike(NextToken, SIZE_OF_DATA),
    LookAlike(MajorNumbers, SIZE_OF_DATA),
]
