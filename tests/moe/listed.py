"""Loops over runs of sorted rows, of which Python is told how long they are, and loops over other
rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import CHOICES, EXPERTS, FEATURES, Mixture


class Listed(Mixture):
    """DeepSeek's remote code: what experts with tokens give is kept in a list."""

    def counts(self, chosen: Tensor) -> Any:
        marks = chosen.new_zeros((chosen.shape[0], EXPERTS))
        marks.scatter_(1, chosen, 1)
        return marks.sum(dim=0).cpu().numpy()

    def order(self, chosen: Tensor) -> Tensor:
        return chosen.reshape(-1).argsort()

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        outputs, start = [], 0
        for e, count in enumerate(counts):
            end = start + count
            if count == 0:
                continue
            outputs.append(self.experts[e](rows[start:end]))
            start = end
        return torch.cat(outputs, dim=0) if len(outputs) else rows.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        counts, order = self.counts(chosen), self.order(chosen)
        outs = self.outputs(x[order // chosen.shape[1]], counts)
        placed = torch.empty_like(outs)
        placed[order] = outs
        placed = placed.view(*chosen.shape, FEATURES).type(weights.dtype)
        return placed.mul_(weights.unsqueeze(dim=-1)).sum(dim=1).type(outs.dtype)


class ListedNumbers(Listed):
    """As a list, with a condition the other way round; a subclass replaces one of the steps."""

    def counts(self, chosen: Tensor) -> Any:
        return F.one_hot(chosen, EXPERTS).sum((0, 1)).tolist()

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        outputs: list[Tensor] = []
        end = 0
        for e in range(EXPERTS):
            if counts[e] > 0:
                begin = end
                end = begin + counts[e]
                outputs.append(self.made(e, rows[begin:end]))
        return self.result(outputs)

    def made(self, e: int, run: Tensor) -> Tensor:
        return self.experts[e](run)

    def result(self, outputs: list[Tensor]) -> Tensor:
        return torch.cat(outputs) if outputs else torch.zeros(0)


class ListedAll(Listed):
    """Nothing is left out."""

    def counts(self, chosen: Tensor) -> Any:
        return torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        outputs, start = [], 0
        for expert, count in zip(self.experts, counts, strict=True):
            outputs.append(expert(rows[start : start + count]))
            start += count
        return torch.cat(outputs)


class ListedSplit(ListedAll):
    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        runs = zip(self.experts, rows.split(counts), strict=True)
        return torch.cat([expert(run) for expert, run in runs])


class ListedFromZero(ListedAll):
    """Every run begins with the first row."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        found = [self.experts[e](rows[:count]) for e, count in enumerate(counts)]
        return torch.cat(found)


class ListedOthers(ListedSplit):
    """Numbers are those of other choices."""

    def counts(self, chosen: Tensor) -> Any:
        other = EXPERTS - 1 - chosen.flatten()
        return torch.bincount(other, minlength=EXPERTS).tolist()


class ListedDown(ListedSplit):
    """Rows of the last expert come first."""

    def order(self, chosen: Tensor) -> Tensor:
        return chosen.view(-1).argsort(descending=True)


class ListedBack(ListedSplit):
    """What experts gave is put together from the last one on."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        runs = zip(self.experts, rows.split(counts), strict=True)
        return torch.cat([expert(run) for expert, run in runs][::-1])


class ListedTwice(ListedSplit):
    """One more expert sees all rows."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        runs = rows.split(counts)
        first = self.experts[0](rows)[: counts[0]]
        return torch.cat([first, *(self.experts[e](runs[e]) for e in range(1, EXPERTS))])


class ListedHowMany(ListedNumbers):
    """How many experts had tokens is told by the list."""

    def result(self, outputs: list[Tensor]) -> Tensor:
        return torch.cat(outputs) / len(outputs)


class ListedFirst(ListedNumbers):
    """The first that had tokens is read once more."""

    def result(self, outputs: list[Tensor]) -> Tensor:
        return torch.cat(outputs) + outputs[0].sum(0)


class ListedFew(ListedNumbers):
    """One row alone is left as it is."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        outputs, end = [], 0
        for e in range(EXPERTS):
            begin = end
            end = begin + counts[e]
            if counts[e] > 1:
                outputs.append(self.experts[e](rows[begin:end]))
            else:
                outputs.append(rows[begin:end])
        return torch.cat(outputs)


class ListedNext(ListedNumbers):
    """Whether an expert has tokens is told by the number of the next one."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        outputs, end = [], 0
        for e in range(EXPERTS):
            begin = end
            end = begin + counts[e]
            if counts[(e + 1) % EXPERTS] > 0:
                outputs.append(self.experts[e](rows[begin:end]))
        return torch.cat(outputs)


class ListedAhead(ListedNumbers):
    """Without tokens the next run begins elsewhere."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        outputs, start = [], 0
        for e in range(EXPERTS):
            end, start = start + counts[e], start
            if counts[e] > 0:
                outputs.append(self.experts[e](rows[start:end]))
                start = end
                continue
            start = end - 1
        return torch.cat(outputs)


class ListedInserted(ListedNumbers):
    """The last one comes first."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        outputs: list[Tensor] = []
        end = 0
        for e in range(EXPERTS):
            if counts[e] > 0:
                begin = end
                end = begin + counts[e]
                outputs.insert(0, self.experts[e](rows[begin:end]))
        return torch.cat(outputs)


class ListedTokens(ListedSplit):
    """Rows are those of other tokens."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        order = self.order(chosen)
        outs = self.outputs(x.repeat(CHOICES, 1)[order], self.counts(chosen))
        placed = torch.empty_like(outs)
        placed[order] = outs
        return (placed.view(*chosen.shape, FEATURES) * weights[..., None]).sum(1)


class ListedHalved(ListedSplit):
    """What experts give is halved."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        runs = zip(self.experts, rows.split(counts), strict=True)
        return torch.cat([expert(run) * 0.5 for expert, run in runs])


class ListedScaled(ListedSplit):
    """Each expert has a number of its own behind it."""

    def outputs(self, rows: Tensor, counts: Any) -> Tensor:
        runs = enumerate(rows.split(counts))
        return torch.cat([self.experts[e](run) * (e + 1) for e, run in runs])


class ListedDoubled(ListedNumbers):
    """One expert counts twice."""

    def made(self, e: int, run: Tensor) -> Tensor:
        return super().made(e, run) * (2 if e == 1 else 1)


class ListedWeighted(ListedNumbers):
    """Runs are weighted one by one, and added where their tokens are."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        order = self.order(chosen)
        tokens = order // CHOICES
        outs = self.weighted(x[tokens], self.sorted(weights, order), self.counts(chosen))
        return torch.zeros_like(x).index_add(0, tokens, outs)

    def sorted(self, weights: Tensor, order: Tensor) -> Tensor:
        return weights.flatten()[order]

    def weighted(self, rows: Tensor, weights: Tensor, counts: Any) -> Tensor:
        outputs, end = [], 0
        for e in range(EXPERTS):
            if counts[e] > 0:
                begin = end
                end = begin + counts[e]
                outputs.append(self.experts[e](rows[begin:end]) * weights[begin:end, None])
        return torch.cat(outputs)


class ListedWeightedFirst(ListedWeighted):
    """Tokens are weighted before the experts, in the pieces of a split."""

    def counts(self, chosen: Tensor) -> Any:
        return torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()

    def weighted(self, rows: Tensor, weights: Tensor, counts: Any) -> Tensor:
        runs = zip(self.experts, rows.split(counts), weights.split(counts), strict=True)
        return torch.cat([expert(run * own.unsqueeze(-1)) for expert, run, own in runs])


class ListedUnsortedWeights(ListedWeighted):
    """Weights of other choices."""

    def sorted(self, weights: Tensor, order: Tensor) -> Tensor:
        return weights.flatten()


class ListedNextWeights(ListedWeightedFirst):
    """Weights of the run before."""

    def weighted(self, rows: Tensor, weights: Tensor, counts: Any) -> Tensor:
        outputs, end = [], 0
        for e in range(EXPERTS):
            begin = end
            end = begin + counts[e]
            outputs.append(self.experts[e](rows[begin:end]) * weights[: counts[e]].unsqueeze(-1))
        return torch.cat(outputs)


class ListedOneWeighted(ListedWeightedFirst):
    """Runs of one expert have no weights."""

    def weighted(self, rows: Tensor, weights: Tensor, counts: Any) -> Tensor:
        runs = enumerate(zip(rows.split(counts), weights.split(counts), strict=True))
        return torch.cat([
            self.experts[e](run) * (own.unsqueeze(-1) if e else 1.0) for e, (run, own) in runs
        ])  # fmt: skip


LISTED = [Listed, ListedNumbers, ListedAll, ListedSplit, ListedHalved, ListedWeighted,
          ListedWeightedFirst]  # fmt: skip
LOOK_ALIKES = [
    (ListedFromZero, "another run than its own"),
    (ListedOthers, "not proved"),
    (ListedDown, "not proved"),
    (ListedBack, "another run than its own"),
    (ListedTwice, "not proved"),
    (ListedHowMany, "not proved"),
    (ListedFirst, "a list of what experts gave is read"),
    (ListedFew, "not proved"),
    (ListedNext, "may be others than those that tokens chose"),
    (ListedAhead, "not proved"),
    (ListedInserted, "it changes objects of Python's"),
    (ListedTokens, "not proved"),
    (ListedScaled, "not proved"),
    (ListedDoubled, "not proved"),
    (ListedUnsortedWeights, "not proved"),
    (ListedNextWeights, "another run than its own"),
    (ListedOneWeighted, "experts are weighted differently"),
]
