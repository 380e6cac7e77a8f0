"""Tokens sorted by the experts that they chose: each expert is a few products of neighbouring rows.

    order   = argsort(indices)              the choices of each expert, one after the other
    rows    = x[order // K]                 y = expert of each run of rows
    out_t   = Σ_k weights[t, k] y[place of (t, k)]

Sums have one order each, so that results are the same in every run. The backward starts from the
first products, which the forward saves.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import MoeSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from . import cost
from .experts import (
    Experts,
    accumulating,
    activated,
    first_products,
    last_product,
    numbered,
)
from .operators import define_saving, emit

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


def mix(
    experts: Experts, x: Tensor, indices: Tensor, weights: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """The same as `reference.mix`; and, to `keep` for the backward, the first products by place."""
    spec, choices = experts.spec, indices.shape[1]
    places = Sorted.of(indices, spec)
    weight = weights.reshape(-1)[places.order, None]
    rows = x[places.token]
    rows = (rows * weight if spec.weights_first else rows).to(spec.product_dtype)
    saved = _room(experts, rows if keep else rows[:0])
    made = _products(experts, rows, places, saved if keep else None)
    y = made.to(accumulating(spec.dtype))
    if not spec.weights_first:
        y = y * weight
    return places.by_token(y, choices).to(spec.dtype), saved


def _room(experts: Experts, rows: Tensor) -> Tensor:
    """For the first products of rows, side by side."""
    return rows.new_empty(len(rows), sum(experts.first_widths))


def _products(
    experts: Experts, rows: Tensor, places: Sorted, saved: Tensor | None = None
) -> Tensor:
    """Results of all rows, by place; first products are left in `saved`."""
    spec = experts.spec
    if places.longest <= ROWS and not spec.separate and places.most_are_hit:
        return _together(experts, rows, places, saved)
    made = rows.new_empty(len(rows), experts.width)
    for expert, run in places.runs():
        own, tensors = rows[run], experts.of(expert)
        found = first_products(spec, own, *tensors)
        _leave(saved, run, found)
        made[run] = last_product(spec, activated(spec, own, found), *tensors)
    return made


def _together(experts: Experts, rows: Tensor, places: Sorted, saved: Tensor | None) -> Tensor:
    """All experts in one product, each on as many rows as the one that has the most."""
    spec, longest, count = experts.spec, places.longest, places.ends[-1]
    ends = torch.tensor(places.ends, device=rows.device)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    shift = torch.arange(spec.experts, device=rows.device) * longest - starts
    at = torch.arange(count, device=rows.device) + shift.repeat_interleave(ends - starts)
    padded = rows.new_zeros(spec.experts * longest, rows.shape[1])
    padded[at] = rows[:count]
    padded = padded.unflatten(0, (-1, longest))
    found = first_products(spec, padded, experts.matrices, experts.biases)
    if saved is not None:
        _leave(saved, slice(0, count), [part.flatten(0, 1)[at] for part in found])
    result = last_product(spec, activated(spec, padded, found), experts.matrices, experts.biases)
    made = rows.new_empty(len(rows), experts.width)
    made[:count] = result.flatten(0, 1)[at]
    return made


def _leave(saved: Tensor | None, run: slice, first: Sequence[Tensor]) -> None:
    start = 0
    for part in first if saved is not None else ():
        assert saved is not None
        saved[run, start : start + part.shape[1]] = part
        start += part.shape[1]


class _Backward:
    """Gradients of one mixture, expert by expert.

    With g the gradient of the result, a the hidden columns and w the weight of a row,

        of a = g M      of w = <of a, a> + <g, b>      of M = (w g)ᵀ a      of b = Σ w g

    and from a to the first products by autograd.
    """

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
        rows = x[self.places.token]
        self.plain = rows
        rows = rows * self.weight if self.spec.weights_first else rows
        self.rows = rows.to(self.spec.product_dtype)
        self.needs_rows, self.needs = any(needs[:2]), list(needs[2:])
        self.tensors = [
            torch.empty_like(t) if n else t
            for t, n in zip(experts.tensors, self.needs, strict=True)
        ]

    def run(self, grad: Tensor, saved: Tensor) -> list[Tensor]:
        """For x, weights and the tensors of the experts, wanted or not."""
        spec, places, weight = self.spec, self.places, self.weight
        if len(saved) != len(self.rows):
            saved = _room(self.experts, self.rows)
            _products(self.experts, self.rows, places, saved)
        of_rows = torch.zeros_like(self.rows)
        of_weight = torch.zeros_like(weight, dtype=accumulating(weight.dtype))
        cotangent = grad[places.token].to(spec.product_dtype)
        hit = set[int]()
        for expert, run in places.runs():
            of_rows[run], share = self._one(expert, run, cotangent[run], saved[run])
            if share is not None:
                of_weight[run] = share
            hit.add(expert)
        for expert in set(range(spec.experts)) - hit:
            for part in range(spec.products + sum(spec.biases)):
                self._keep(part, expert, None)
        if spec.weights_first:
            wide = of_rows.to(accumulating(of_rows.dtype))
            of_weight = (wide * self.plain).sum(-1, keepdim=True)
            of_rows = wide * weight
        of_weight[places.ends[-1] :] = 0
        of_weights = torch.empty_like(of_weight)
        of_weights[places.order] = of_weight
        of_x = places.by_token(of_rows.to(accumulating(self.x.dtype)), self.choices)
        of_weights = of_weights.reshape(self.weights.shape)
        return [of_x.to(self.x.dtype), of_weights.to(self.weights.dtype), *self.tensors]

    def _one(
        self, expert: int, run: slice, grad: Tensor, saved: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of the rows of an expert, and of their weights where those come after it."""
        spec, rows = self.spec, self.rows[run]
        matrices, biases = self.experts.of(expert)
        dtype, last = spec.product_dtype, spec.products - 1
        leaves = [t.detach().requires_grad_() for t in (rows, *self._split(saved))]
        with differentiable():
            hidden = activated(spec, leaves[0], leaves[1:])
        columns, share = hidden.detach(), None
        of_hidden = grad @ matrices[last].to(dtype)
        if not spec.weights_first:
            wide = accumulating(self.weight.dtype)
            share = (of_hidden.to(wide) * columns).sum(-1, keepdim=True)
            if spec.biases[last]:
                share = share + grad.to(wide) @ biases[-1].to(wide).unsqueeze(1)
            weight = self.weight[run]
            of_hidden, grad = (of_hidden * weight).to(dtype), (grad * weight).to(dtype)
        found: Any = torch.autograd.grad(hidden, leaves, of_hidden, allow_unused=True)
        of_rows, *of_first = found
        self._matrix(last, expert, grad, columns)
        for p, part in enumerate(of_first):
            whole = torch.zeros_like(leaves[1 + p]) if part is None else part
            self._matrix(p, expert, whole, rows)
            product = whole @ matrices[p].to(dtype)
            of_rows = product if of_rows is None else of_rows + product
        for number, p in enumerate(p for p, has in enumerate(spec.biases) if has):
            part = grad if p == last else of_first[p]
            self._keep(spec.products + number, expert, None if part is None else part.sum(0))
        assert of_rows is not None
        return of_rows, share

    def _split(self, saved: Tensor) -> Sequence[Tensor]:
        widths = self.experts.first_widths
        return saved.split(widths, 1) if widths else ()

    def _matrix(self, part: int, expert: int, rows: Tensor, columns: Tensor) -> None:
        """The gradient of a matrix: rowsᵀ columns."""
        target = self._target(part, expert)
        if target is not None and target.dtype is rows.dtype:
            torch.mm(rows.t(), columns, out=target)
        elif target is not None:
            target.copy_(rows.t() @ columns)

    def _keep(self, part: int, expert: int, grad: Tensor | None) -> None:
        target = self._target(part, expert)
        if target is not None:
            target.zero_() if grad is None else target.copy_(grad)

    def _target(self, part: int, expert: int) -> Tensor | None:
        """Where a gradient is wanted, if it is."""
        place = part * self.spec.experts + expert if self.spec.separate else part
        if not self.needs[place]:
            return None
        return self.tensors[place] if self.spec.separate else self.tensors[place][expert]


def gradients(
    grad: Tensor,
    saved: Tensor,
    experts: Experts,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Of `mix`: of x, weights and the experts' tensors, where `needs` says so."""
    found = _Backward(experts, x, indices, weights, needs).run(grad, saved)
    return [g for g, n in zip(found, needs, strict=True) if n]


def _fake_saved(experts: Experts, x: Tensor, indices: Tensor, keep: bool) -> Tensor:
    rows = indices.shape[0] * indices.shape[1] if keep else 0
    return x.new_empty(rows, sum(experts.first_widths), dtype=experts.spec.product_dtype)


define_saving("grouped_moe", mix, gradients, _fake_saved)


@register_lowering(MoeSpec, order=10)
class Grouped(Lowering):
    """Products of PyTorch, expert by expert."""

    name: ClassVar[str] = "grouped products"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def put(builder: Builder) -> Node:
            function = torch.ops.fuser.grouped_moe.default
            out = emit(builder, call, function, context.training)
            return builder.call(operator.getitem, out, 0)

        why = "each token goes through its own experts alone"
        return Emission(put, "aten.grouped", why, _slower(call, context), {})


def _slower(call: Call, context: Context) -> str:
    """Why the inner backend is expected to be as fast, in plain words; else empty."""
    if context.native:
        return "rows are sorted by experts and multiplied in groups already"
    if context.device.type != "cpu":
        return "it asks the host how many tokens each expert has, for which a GPU would wait"
    if not context.excess:
        return "the chosen experts alone are computed already, which is as fast on a CPU"
    if not cost.pays_on_cpu(call):
        return "experts have too few rows, or numbers, for a CPU to gain by leaving others out"
    return ""
