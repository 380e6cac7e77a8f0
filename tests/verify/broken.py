"""Kernels that are broken on purpose: one sign, one mask, one scale of each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuser.lowering.activation import reference as activation
from fuser.lowering.attention import reference as attention
from fuser.lowering.loss import reference as loss
from fuser.lowering.loss import sweep
from fuser.lowering.moe import reference as moe
from fuser.lowering.moe.router import reference as router
from fuser.lowering.norm import reference as norm
from tests.activation import forms as activations
from tests.loss.forms import FEATURES as HIDDEN
from tests.loss.forms import Flattened, labels
from tests.moe.forms import FEATURES, Stack
from tests.norm.forms_rope import llama

Change = Callable[[Any], Callable[..., Any]]


@dataclass(frozen=True)
class Broken:
    """A model, and what is changed in a module so that a kernel is wrong.

    Attributes:
        module, name: of a function.
        change: makes another one of it.
        gradient: the result is right, and a gradient is wrong.
    """

    family: str
    what: str
    model: Callable[..., Any]
    inputs: Callable[[], Sequence[Tensor]]
    module: Any
    name: str
    change: Change
    gradient: bool = False
    lowering: str = "reference"

    @property
    def id(self) -> str:
        return f"{self.family}: {self.what}"

    @property
    def options(self) -> dict[str, Any]:
        return {
            "fuser.inner": "aot_eager",
            "fuser.policy": "always",
            "fuser.lowering": self.lowering,
            "fuser.patterns": self.family,
        }

    def apply(self, patch: Any) -> None:
        """Break it, for the time of a test."""
        patch.setattr(self.module, self.name, self.change(getattr(self.module, self.name)))


def made(*shapes: Sequence[int]) -> Callable[[], list[Tensor]]:
    def make() -> list[Tensor]:
        torch.manual_seed(1)
        return [torch.randn(*shape, requires_grad=True) for shape in shapes]

    return make


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = torch.arange(q.shape[-2])
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(rows[:, None] < rows, -torch.inf), -1) @ v


def rms(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w


class Route(nn.Module):
    """Weights and indices of two experts of eight."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = torch.topk(F.softmax(x, -1), 2, -1)
        return weights / weights.sum(-1, keepdim=True), chosen


def _first_times(factor: float) -> Change:
    """The first result is multiplied."""

    def change(usual: Any) -> Callable[..., Any]:
        def function(*args: Any) -> Any:
            first, *others = found = usual(*args)
            return type(found)([factor * first, *others])

        return function

    return change


def _times(factor: float) -> Change:
    return lambda usual: lambda *args: factor * usual(*args)


def _swapped(usual: Any) -> Callable[..., Any]:
    """The members of a pair are rotated the other way round."""
    return lambda *args: usual(*args).flip(-1)


def _operands() -> list[Tensor]:
    (x,) = made((2, 7, HIDDEN))()
    return [x, labels()]


HEADS = made(*[(1, 2, 8, 4)] * 3)
ROWS = made((2, 6, 16), (16,))
MIXTURE = Stack().eval()
BROKEN = [
    Broken("attention", "a sign", causal, HEADS, attention, "_softmax",
           lambda usual: lambda spec, score, named: usual(
               spec, torch.where(score.isinf(), score, -score), named)),
    Broken("attention", "no mask", causal, HEADS, attention, "_softmax",
           lambda usual: lambda spec, score, named: usual(
               spec, score.masked_fill(score.isinf(), 0), named)),
    Broken("attention", "a scale of gradients", causal, HEADS, attention, "_differentiate",
           _first_times(0.5), gradient=True),
    Broken("moe", "a sign", MIXTURE, made((10, FEATURES)), moe, "apply", _times(-1)),
    Broken("moe", "the next expert", MIXTURE, made((10, FEATURES)), moe, "numbered",
           lambda usual: lambda indices, experts, *more: (
               usual(indices, experts, *more) + 1) % experts),
    Broken("norm", "a sign", rms, ROWS, norm, "_normalised", _times(-1)),
    Broken("norm", "a scale", rms, ROWS, norm, "_normalised", _times(1.01)),
    Broken("activation", "a sign", activations.swiglu,
           made((2, 6, 16), (2, 6, 16), (16,), (1,)), activation, "activate", _times(-1)),
    Broken("rope", "members", llama, made((2, 6, 16), (16,), (16,)), norm, "_result", _swapped),
    Broken("loss", "a scale", Flattened(), _operands, loss, "problem_of",
           lambda usual: lambda operands: replace(
               of := usual(operands), weight=1.01 * of.weight)),
    Broken("loss", "a sign of gradients", Flattened(), _operands, sweep._Sweep, "_add_to_weight",
           lambda usual: lambda self, z, x: usual(self, -z, x), gradient=True, lowering="aten"),
    Broken("router", "no renormalisation", Route(), made((12, 8)), router, "route",
           _first_times(1.01)),
]  # fmt: skip
