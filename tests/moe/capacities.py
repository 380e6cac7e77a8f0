"""Experts with a capacity: tokens are sent to places by einsum; what has none is dropped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .forms import EXPERTS, FEATURES, Mixture, Plain

CAPACITY = 4


class Capacity(Mixture):
    """Switch: the best expert alone, unless it is full. A subclass replaces one of the steps."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`combine` and `dispatch`, `(tokens, experts, capacity)`."""
        scores = F.softmax(self.gate(x), -1)
        gate, chosen = scores.max(-1)
        mask = F.one_hot(chosen, EXPERTS)
        position = torch.cumsum(mask, 0) * mask
        mask = mask * (position <= CAPACITY)
        kept = mask.sum(-1)
        place = F.one_hot(((position - 1) * mask).sum(-1), CAPACITY).to(x.dtype)
        combine = (gate * kept)[:, None, None] * mask[..., None] * place[:, None, :]
        return combine, combine.bool().to(x.dtype)

    def run(self, rows: Tensor) -> Tensor:
        """All experts, of `(experts, capacity, features)`."""
        hidden = torch.einsum("ecd,ehd->ech", rows, self.up).relu()
        return torch.einsum("ech,edh->ecd", hidden, self.down)

    def forward(self, x: Tensor) -> Tensor:
        combine, dispatch = self.masks(x)
        rows = torch.einsum("tec,td->ecd", dispatch, x)
        return torch.einsum("tec,ecd->td", combine, self.run(rows))


class WithBiases(Capacity):
    """An empty place gives something, which nobody reads."""

    def run(self, rows: Tensor) -> Tensor:
        hidden = torch.bmm(rows, self.gate_up.mT) + self.gate_up_bias.unsqueeze(1)
        gate, up = hidden.chunk(2, -1)
        return torch.bmm(F.silu(gate) * up, self.down.mT) + self.down_bias.unsqueeze(1)


class BestTwo(Capacity):
    """DeepSpeed, fairseq: second choices come after all first ones."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = F.softmax(self.gate(x), dim=1)
        first = torch.argmax(gates, dim=1)
        mask1 = F.one_hot(first, num_classes=EXPERTS)
        without = gates.masked_fill(mask1.bool(), float("-inf"))
        mask2 = F.one_hot(torch.argmax(without, dim=1), num_classes=EXPERTS)
        locations1 = torch.cumsum(mask1, dim=0) - 1
        locations2 = torch.cumsum(mask2, dim=0) - 1
        locations2 += torch.sum(mask1, dim=0, keepdim=True)
        mask1 *= torch.lt(locations1, CAPACITY)
        mask2 *= torch.lt(locations2, CAPACITY)
        locations1_s = torch.sum(locations1 * mask1, dim=1)
        locations2_s = torch.sum(locations2 * mask2, dim=1)
        mask1_float, mask2_float = mask1.to(x.dtype), mask2.to(x.dtype)
        gates1_s = torch.einsum("se,se->s", gates, mask1_float)
        gates2_s = torch.einsum("se,se->s", gates, mask2_float)
        total = torch.clamp(gates1_s + gates2_s, min=1e-9)
        gates1_s, gates2_s = gates1_s / total, gates2_s / total
        gates1 = torch.einsum("s,se->se", gates1_s, mask1_float)
        gates2 = torch.einsum("s,se->se", gates2_s, mask2_float)
        locations1_sc = F.one_hot(locations1_s, CAPACITY).to(x.dtype)
        locations2_sc = F.one_hot(locations2_s, CAPACITY).to(x.dtype)
        combine1_sec = torch.einsum("se,sc->sec", gates1, locations1_sc)
        combine2_sec = torch.einsum("se,sc->sec", gates2, locations2_sc)
        combine = combine1_sec + combine2_sec
        return combine, combine.bool().to(x.dtype)


class BestTwoModules(BestTwo):
    """Experts are modules, each given its part of the rows; products of flat masks."""

    expert = Plain

    def after(self, rows: Tensor) -> Tensor:
        return rows

    def forward(self, x: Tensor) -> Tensor:
        combine, dispatch = self.masks(x)
        rows = dispatch.view(len(x), EXPERTS * CAPACITY).t() @ x
        chunks = rows.view(EXPERTS, CAPACITY, FEATURES).chunk(EXPERTS, dim=0)
        pairs = zip(chunks, self.experts, strict=True)
        outs = [self.after(expert(chunk)) for chunk, expert in pairs]
        out = torch.cat(outs, dim=0).view(EXPERTS * CAPACITY, FEATURES)
        return combine.view(len(x), EXPERTS * CAPACITY).mm(out)


class AnyK(Capacity):
    """All choices are counted together, first ones first; the mask comes from positions."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = self.route(x)
        mask = F.one_hot(chosen, EXPERTS).permute(1, 0, 2)
        order = mask.reshape(-1, EXPERTS).cumsum(0).view(self.choices, -1, EXPERTS) - 1
        mask = mask * (order < CAPACITY)
        place = F.one_hot((order * mask).sum(-1), CAPACITY)
        sent = (mask[..., None] * place[:, :, None]).to(x.dtype)
        combine = torch.einsum("tk,ktec->tec", weights, sent)
        return combine, sent.sum(0)


class OfEachExpert(Capacity):
    """One position for each token and expert, compared with the numbers of places."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), -1)
        mask = F.one_hot(scores.argmax(-1), EXPERTS)
        position = mask.cumsum(0) - mask
        dispatch = (position[..., None] == torch.arange(CAPACITY)) * mask[..., None]
        dispatch = dispatch.to(x.dtype)
        return dispatch * scores[..., None], dispatch


class DroppedPlace(Capacity):
    """Who has no place is sent to one that is cut off."""

    def masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.softmax(self.gate(x), -1)
        chosen = scores.argmax(-1, keepdim=True)
        mask = F.one_hot(chosen.squeeze(1), EXPERTS)
        position = (mask.cumsum(0) - 1).gather(1, chosen).squeeze(1)
        place = F.one_hot(position, len(x))[:, :CAPACITY]
        dispatch = (mask[..., None] * place[:, None]).to(x.dtype)
        return torch.einsum("te,tec->tec", scores, dispatch), dispatch


class InGroups(Capacity):
    """GShard: every group of tokens has places of its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        scores = F.softmax(self.gate(x), -1)
        mask = F.one_hot(scores.argmax(-1), EXPERTS)
        position = mask.cumsum(1) - 1
        kept = mask * (position < 2)
        place = F.one_hot((position * kept).sum(-1), x.shape[1]).to(x.dtype)
        dispatch = torch.einsum("gse,gsc->gsec", kept.to(x.dtype), place)
        combine = dispatch * (scores * kept).sum(-1)[..., None, None]
        rows = torch.einsum("gsec,gsm->egcm", dispatch, x)
        hidden = torch.einsum("egcm,ehm->egch", rows, self.up).relu()
        out = torch.einsum("egch,emh->egcm", hidden, self.down)
        return torch.einsum("gsec,egcm->gsm", combine, out)


class Doubled(BestTwoModules):
    """What each of the experts gives is doubled."""

    def after(self, rows: Tensor) -> Tensor:
        return rows * 2


class Tripled(WithBiases):
    """What all of them give is tripled, biases too."""

    def run(self, rows: Tensor) -> Tensor:
        return super().run(rows) * 3


CAPACITIES: list[type[Mixture]] = [
    Capacity, WithBiases, BestTwo, BestTwoModules, Doubled, Tripled, AnyK, OfEachExpert,
    DroppedPlace, InGroups,
]  # fmt: skip
