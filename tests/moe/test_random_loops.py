"""Loops put together from parts, right ones and wrong ones: whatever is rewritten is as near to
fp64 as eager, with all gradients. `FUSER_EVERY=1` draws many."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import assert_near, compiled, run, wide
from tests.every import EVERY

from .forms import EXPERTS, FEATURES, TOKENS, Mixture
from .loops import CAPTURE

SEEDS = range(400 if EVERY else 12)

_RIGHT = ["", "reversed"]


@dataclass(frozen=True)
class Parts:
    """What a loop is made of.

    Attributes:
        router: where weights and indices come from.
        positions: how an expert finds its tokens.
        statement: how rows get into the result.
        start: what that is before.
        twist: what is unusual, or wrong.
    """

    router: str
    positions: str
    statement: str
    start: str
    twist: str

    @staticmethod
    def drawn(seed: int) -> Parts:
        draw = random.Random(seed)
        return Parts(
            draw.choice(["topk", "renormalised", "argmax", "sorted"]),
            draw.choice(["where", "one_hot", "nonzero", "tuple"]),
            draw.choice(["index_add_", "index_add", "+=", "=", "= +"]),
            draw.choice(["zeros", "zeros", "copy"]),
            draw.choice(
                ["", "", "other weight", "shifted", "below", "twice", "longer", "reversed"]
            ),
        )


class RandomLoop(Mixture):
    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def chosen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, twist = F.softmax(self.gate(x), -1), self.parts.twist
        if self.parts.router == "argmax":
            weights, chosen = scores.max(-1, keepdim=True)
        elif self.parts.router == "sorted":
            weights, chosen = (part[:, :2] for part in scores.sort(-1, descending=True))
        else:
            weights, chosen = scores.topk(2, -1)
        if self.parts.router == "renormalised":
            weights = weights / weights.sum(-1, keepdim=True)
        if twist == "twice":
            chosen = torch.cat([chosen[:, :1]] * chosen.shape[1], 1)
        return weights, chosen + {"shifted": 1, "below": -1}.get(twist, 0)

    def positions(self, chosen: Tensor, expert: int) -> tuple[Tensor, Tensor]:
        how = self.parts.positions
        if how == "one_hot":
            k, t = torch.where(F.one_hot(chosen.clamp(0, EXPERTS - 1), EXPERTS)[..., expert].t())
            return t, k
        mask = chosen == expert
        if how == "nonzero":
            return tuple(mask.nonzero().unbind(1))  # type: ignore[return-value]
        return mask.nonzero(as_tuple=True) if how == "tuple" else torch.where(mask)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        parts, (weights, chosen) = self.parts, self.chosen(x)
        out = torch.zeros_like(x) if parts.start == "zeros" else x.clone()
        given = torch.cat([x, -x]) if parts.twist == "longer" else x
        for e in range(EXPERTS)[:: -1 if parts.twist == "reversed" else 1]:
            t, k = self.positions(chosen, e)
            own = weights.shape[1] - 1 - k if parts.twist == "other weight" else k
            rows = self.experts[e](given[t]) * weights[t, own, None]
            if parts.statement == "index_add_":
                out.index_add_(0, t, rows)
            elif parts.statement == "index_add":
                out = out.index_add(0, t, rows)
            elif parts.statement == "+=":
                out[t] += rows
            else:
                out[t] = rows if parts.statement == "=" else out[t] + rows
        return out


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_drawn(seed: int) -> None:
    torch.manual_seed(seed)
    module = RandomLoop(Parts.drawn(seed)).eval()
    x = torch.randn(TOKENS, FEATURES, requires_grad=True)
    with torch._dynamo.config.patch(CAPTURE):
        ours = compiled(module, (x,), grad=True, inner="eager", **{"fuser.lowering": "aten"})
    assert ours.record.graphs == 1
    assert_near(ours, run(module, (x,), grad=True), run(wide(module), wide((x,)), grad=True))
    sound = module.parts.twist in _RIGHT and module.parts.statement == "index_add"
    assert ours.rewrites("moe") == 1 or not sound, (module.parts, ours.reasons())
