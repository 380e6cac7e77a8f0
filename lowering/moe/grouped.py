"""Tokens sorted by the experts that they chose: each expert is a few products of neighbouring rows.

    order   = argsort(indices)              the choices of each expert, one after the other
    rows    = x[order // K]                 y = expert of each run of rows
    out_t   = Σ_k weights[t, k] y[place of (t, k)]

Sums have one order each, so that results are the same in every run. The backward computes each
expert again, and differentiates it where it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import MoeSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from .experts import Experts, accumulating, apply, numbered
from .operators import define, emit


ROWS = 256
"""Up to so many rows of every expert, products of all experts at once are faster than one after the
other, with rows of zeros for the experts that have fewer."""


@dataclass(frozen=True)
class Sorted:
    """Choices in the order of their experts.

    Attributes:
        order: by place, the number of the choice, `t * K + k`.
        token: by place, t.
        ends: by expert, the place after its last one.
    """

    order: Tensor
    token: Tensor
    ends: Sequence[int]

    @staticmethod
    def of(indices: Tensor, spec: MoeSpec) -> Sorted:
        """Those that are dropped come last, behind the last end."""
        flat = numbered(indices, spec).reshape(-1)
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=spec.experts)[: spec.experts]
        return Sorted(order, order // indices.shape[1], counts.cumsum(0).tolist())

    @property
    def longest(self) -> int:
        """Rows of the expert that has the most."""
        return max((run.stop - run.start for _, run in self.runs()), default=0)

    @property
    def most_are_hit(self) -> bool:
        """Whether most experts have rows."""
        return 2 * sum(1 for _ in self.runs()) > len(self.ends)

    def runs(self) -> Iterator[tuple[int, slice]]:
        """Experts that somebody chose, and their places."""
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end

    def by_token(self, rows: Tensor, choices: int) -> Tensor:
        """Sums of the rows of each token, `(T, ...)`."""
        rows[self.ends[-1] :] = 0
        placed = torch.empty_like(rows)
        placed[self.order] = rows
        return placed.unflatten(0, (-1, choices)).sum(1)


def mix(experts: Experts, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The same as `reference.mix`."""
    spec, choices = experts.spec, indices.shape[1]
    places = Sorted.of(indices, spec)
    weight = weights.reshape(-1)[places.order, None]
    rows = x[places.token]
    if spec.weights_first:
        rows = rows * weight
    if places.longest <= ROWS and not spec.separate and places.most_are_hit:
        y = _together(experts, rows, places).to(accumulating(spec.dtype))
    else:
        y = x.new_zeros(len(rows), experts.width, dtype=accumulating(spec.dtype))
        for expert, run in places.runs():
            y[run] = apply(spec, rows[run], *experts.of(expert))
    if not spec.weights_first:
        y *= weight
    return places.by_token(y, choices).to(spec.dtype)


def _together(experts: Experts, rows: Tensor, places: Sorted) -> Tensor:
    """All experts in one product, each on as many rows as the one that has the most."""
    count = places.ends[-1]
    spec, longest = experts.spec, places.longest
    starts = torch.tensor([0, *places.ends[:-1]])
    lengths = torch.tensor(places.ends) - starts
    at = torch.arange(count) + (torch.arange(spec.experts) * longest - starts).repeat_interleave(
        lengths
    )
    padded = rows.new_zeros(spec.experts * longest, rows.shape[1])
    padded[at] = rows[:count]
    made = apply(spec, padded.unflatten(0, (-1, longest)), experts.matrices, experts.biases)
    y = made.new_zeros(len(rows), experts.width)
    y[:count] = made.flatten(0, 1)[at]
    return y


class _Backward:
    """Gradients of one mixture."""

    def __init__(
        self,
        experts: Experts,
        x: Tensor,
        indices: Tensor,
        weights: Tensor,
        needs: Sequence[bool],
    ) -> None:
        self.experts, self.spec, self.x, self.weights = experts, experts.spec, x, weights
        self.choices = indices.shape[1]
        self.places = Sorted.of(indices, self.spec)
        self.weight = weights.reshape(-1)[self.places.order, None]
        self.needs_rows, self.needs = any(needs[:2]), list(needs[2:])

    def run(self, grad: Tensor) -> list[Tensor]:
        """For x, weights and the tensors of the experts, wanted or not."""
        spec, places, weight = self.spec, self.places, self.weight
        tensors = [torch.zeros_like(t) for t in self.experts.tensors]
        rows = self.x[places.token]
        given = rows * weight if spec.weights_first else rows
        of_rows = torch.zeros_like(given)
        cotangent = grad[places.token]
        of_weight = torch.zeros_like(weight, dtype=accumulating(weight.dtype))
        for expert, run in places.runs():
            y, leaves, own = self._again(expert, given[run])
            wide = cotangent[run].to(accumulating(y.dtype))
            if not spec.weights_first:
                of_weight[run] = (wide * y.detach()).sum(-1, keepdim=True)
                wide = wide * weight[run]
            grads = torch.autograd.grad(y, leaves, wide.to(y.dtype), allow_unused=True)
            of_rows[run] = grads[0]
            for place, g in zip(own, grads[1:], strict=True):
                self._keep(tensors, place, expert, g)
        if spec.weights_first:
            wide = of_rows.to(accumulating(of_rows.dtype))
            of_weight = (wide * rows).sum(-1, keepdim=True)
            of_rows = wide * weight
        of_weight[places.ends[-1] :] = 0
        of_weights = torch.empty_like(of_weight)
        of_weights[places.order] = of_weight
        of_x = places.by_token(of_rows.to(accumulating(self.x.dtype)), self.choices)
        of_weights = of_weights.reshape(self.weights.shape)
        return [of_x.to(self.x.dtype), of_weights.to(self.weights.dtype), *tensors]

    def _again(self, expert: int, rows: Tensor) -> tuple[Tensor, list[Tensor], list[int]]:
        """What an expert makes of rows, what that is to be differentiated by, and which of the
        wanted tensors those are."""
        rows = rows.detach().requires_grad_()
        matrices, biases = self.experts.of(expert)
        each = self.spec.experts if self.spec.separate else 1
        own = [
            p
            for p in range(len(matrices) + len(biases))
            if self.needs[p * each + (expert if each > 1 else 0)]
        ]
        parts = [t.detach().requires_grad_(p in own) for p, t in enumerate((*matrices, *biases))]
        with differentiable():
            y = apply(self.spec, rows, parts[: len(matrices)], parts[len(matrices) :])
        return y, [rows, *(parts[p] for p in own)], own

    def _keep(self, tensors: list[Tensor], part: int, expert: int, grad: Tensor | None) -> None:
        if grad is None:
            return
        if self.spec.separate:
            tensors[part * self.spec.experts + expert].copy_(grad)
        else:
            tensors[part][expert].copy_(grad)


def gradients(
    grad: Tensor,
    experts: Experts,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Of `mix`: of x, weights and the experts' tensors, where `needs` says so."""
    found = _Backward(experts, x, indices, weights, needs).run(grad)
    return [g for g, n in zip(found, needs, strict=True) if n]


define("grouped_moe", mix, gradients)


@register_lowering(MoeSpec, order=10)
class Grouped(Lowering):
    """Products of PyTorch, expert by expert."""

    name: ClassVar[str] = "grouped products"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def put(builder: Builder) -> Node:
            return emit(builder, call, torch.ops.fuser.grouped_moe.default)

        why = "each token goes through its own experts alone"
        return Emission(put, "aten.grouped", why, _slower(call, context), {})


def _slower(call: Call, context: Context) -> str:
    """Why the inner backend is expected to be as fast, in plain words; else empty."""
    if context.native:
        return "rows are sorted by experts and multiplied in groups already"
    if context.device.type != "cpu":
        return "it asks the host how many tokens each expert has, for which a GPU would wait"
    return "nothing measured says when it is faster"
