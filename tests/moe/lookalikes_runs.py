"""Rows in runs that are no experts', or experts that may not be taken together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .runs import FEATURES, Local


@dataclass(frozen=True)
class LookAlike:
    """A module, and why it stays as it is; "" where nobody would take it for experts."""

    module: type[Local]
    reason: str = ""
    grad: bool = True


class Grouped(Local):
    """A subclass says what stands between two grouped products, or what they are given."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends)
        return self.product(self.between(hidden, rows), self.w2.mT, ends)

    def between(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return hidden.relu()


class OtherEndsAtOnce(Local):
    """One of two first products cuts elsewhere."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends).relu()
        hidden = hidden * self.product(rows, self.w3.mT, ends - 1)
        return self.product(hidden, self.w2.mT, ends)


class OtherEnds(Local):
    """Runs are others: these are not experts one after the other."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends).relu()
        return self.product(hidden, self.w2.mT, ends.clone())


class OneProduct(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        return self.product(rows, self.w1.mT, counts.cumsum(0).int()).relu()


class OtherRows(Local):
    """The second first product takes other rows."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends).relu()
        hidden = hidden * self.product(rows.flip(0), self.w3.mT, ends)
        return self.product(hidden, self.w2.mT, ends)


class MixesRows(Grouped):
    """A softmax over rows."""

    def between(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return hidden.softmax(0)


class Normalised(Grouped):
    """By a number that is made of all columns."""

    def between(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return hidden * hidden.square().sum(-1, keepdim=True)


class ShiftedRows(Grouped):
    """Every row but the last goes on as the one after it."""

    def between(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([hidden[:1], hidden[:-1]]).relu()


class RowsCutOff(Local):
    """Other rows than the first product's go through the second."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends).relu()
        return self.product(hidden[1:], self.w2.mT, ends - 1)


class RowsCutOffAtSameEnds(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int() - 1
        hidden = self.product(rows, self.w1.mT, ends).relu()
        return self.product(hidden[1:], self.w2.mT, ends)


class ReadsRowsAgain(Grouped):
    """The activation takes what is no product."""

    def between(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return hidden.relu() + torch.cat([rows, rows[:, :8]], -1)


class AddsRows(Grouped):
    """What is added is another number for every row."""

    def between(self, hidden: Tensor, rows: Tensor) -> Tensor:
        return (hidden + self.scores[:, None]).relu()


class BiasByIndex(Local):
    """What is added is that of an expert, but not of the one in whose run a row is."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends, experts = counts.cumsum(0).int(), torch.arange(len(rows)) % len(counts)
        hidden = (self.product(rows, self.w1.mT, ends) + self.b1[experts]).relu()
        return self.product(hidden, self.w2.mT, ends)


class BiasOfOtherCounts(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends, rest = counts.cumsum(0).int(), {"dim": 0, "output_size": len(rows)}
        hidden = self.product(rows, self.w1.mT, ends)
        hidden = (hidden + self.b1.repeat_interleave(counts.flip(0), **rest)).relu()
        return self.product(hidden, self.w2.mT, ends)


class HiddenIsReturned(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        ends = counts.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends)
        return self.product(hidden.relu(), self.w2.mT, ends), hidden


class WrittenEnds(Local):
    """The ends are others by the time of the second product."""

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()
        hidden = self.product(rows, self.w1.mT, ends).relu()
        ends.sub_(1)
        return self.product(hidden, self.w2.mT, ends)


class WrittenRows(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends, rows = counts.cumsum(0).int(), rows * 1.0
        hidden = self.product(rows, self.w1.mT, ends).relu()
        rows.mul_(2.0)
        hidden = hidden * self.product(rows, self.w3.mT, ends)
        return self.product(hidden, self.w2.mT, ends)


class OneExpert(Local):
    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        ends = counts.cumsum(0).int()[-1:]
        hidden = self.product(rows, self.w1[:1].mT, ends).relu()
        return self.product(hidden, self.w2[:1].mT, ends)


class InTurn(Local):
    """A subclass says how the pieces become one tensor again."""

    def run(self, e: int, run: Tensor) -> Tensor:
        return F.relu(run @ self.w1[e].T) @ self.w2[e].T

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        return self.together([self.run(e, r) for e, r in enumerate(x.split(counts.tolist()))])

    def together(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)


class InAnotherOrder(InTurn):
    def together(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([parts[2], parts[0], parts[1]])


class OnePieceTwice(InTurn):
    def together(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([parts[0], parts[0], parts[2]])


class OneMoreTensor(InTurn):
    """Nothing is put together that has as many parts as there are runs."""

    def together(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([*parts, parts[0].new_zeros(1, FEATURES)])


class OtherActivation(InTurn):
    def run(self, e: int, run: Tensor) -> Tensor:
        hidden = run @ self.w1[e].T
        return (hidden.sigmoid() if e else hidden.relu()) @ self.w2[e].T


class WeightedRuns(InTurn):
    """Each run with a number of its own."""

    def run(self, e: int, run: Tensor) -> Tensor:
        return (e + 1.0) * super().run(e, run)


class OwnRowsToo(InTurn):
    """The rows of a run are added to what their expert gives."""

    def run(self, e: int, run: Tensor) -> Tensor:
        return run + super().run(e, run)


class MixesARun(InTurn):
    def run(self, e: int, run: Tensor) -> Tensor:
        return super().run(e, run - run.sum(0))


class OtherCounts(Local):
    """Lengths are those of another order of experts."""

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        lengths = counts.tolist()
        parts = x.split([lengths[2], lengths[0], lengths[1]])
        return torch.cat([F.relu(p @ self.w1[e].T) @ self.w2[e].T for e, p in enumerate(parts)])


STANDS = "stands where an expert's product was expected"
PLACES = "rows are cut elsewhere than where the next expert begins"
CUT = "a part is cut of something else than features"
BETWEEN = "what is added to an expert's product differs between tokens"
TOGETHER = "what is put together are not the runs of one split in their order"
LOOKALIKES = [
    *(LookAlike(m, PLACES) for m in (OtherEndsAtOnce, OtherEnds, WrittenEnds)),
    *(LookAlike(m) for m in (OneProduct, MixesRows, ShiftedRows, OneMoreTensor, MixesARun)),
    LookAlike(OtherRows, "products of an expert multiply different tensors"),
    LookAlike(ReadsRowsAgain, STANDS),
    LookAlike(Normalised, "an intermediate value is used elsewhere, by `square`"),
    *(LookAlike(m, CUT) for m in (RowsCutOff, RowsCutOffAtSameEnds)),
    *(LookAlike(m, BETWEEN) for m in (AddsRows, BiasByIndex, BiasOfOtherCounts, OwnRowsToo)),
    LookAlike(HiddenIsReturned, "an intermediate value is used elsewhere: returned"),
    LookAlike(WrittenRows, "products of an expert multiply different tensors", grad=False),
    LookAlike(OneExpert, "there is one expert here"),
    *(LookAlike(m, TOGETHER) for m in (InAnotherOrder, OnePieceTwice)),
    LookAlike(OtherActivation, "experts have different activations"),
    LookAlike(WeightedRuns, "runs are multiplied with different numbers"),
    LookAlike(OtherCounts, "runs are not as long as the numbers of one tensor"),
]  # fmt: skip
