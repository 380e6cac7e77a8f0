"""Mixtures on a CPU: choices sorted by expert, and each product an operator over their runs.

    fuser::sort_choices(indices, experts, dropping) -> order, inverse, ends
    fuser::sorted_product(rows, matrices, biases, ends, turned) -> rows

All else is a composition that autograd and the inner backend see (`composite`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import MoeSpec

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from ..operator import operator
from . import cost
from .composite import Places, compose
from .experts import is_choice, numbered, of_product, spec_of
from .operators import OPERANDS, emit
from .runs import Runs


def _sort(indices: Tensor, experts: int, dropping: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Choices in the order of their experts.

    Args:
        indices: `(T, K)`; negative ones count from the end.
        experts: how many there are.
        dropping: an index of no expert is dropped: it comes last.

    Returns:
        See `composite.Places`: `order`, `inverse` and `ends`.

    Raises:
        IndexError: an index is of no expert, and none may be dropped.
    """
    flat = numbered(indices, experts, dropping).reshape(-1)
    order = flat.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    counts = torch.bincount(flat, minlength=experts)[:experts]
    return order, inverse, counts.cumsum(0)


def _fake_sort(indices: Tensor, experts: int, dropping: bool) -> tuple[Tensor, Tensor, Tensor]:
    order = indices.new_empty(indices.numel(), dtype=torch.long)
    return order, torch.empty_like(order), indices.new_empty(experts, dtype=torch.long)


def _product(
    rows: Tensor, matrices: Sequence[Tensor], biases: Sequence[Tensor], ends: Tensor, turned: bool
) -> Tensor:
    """Rows times the matrices of their experts, and what those add.

    Args:
        rows: `(R, in)`, sorted by expert.
        matrices: one `(E, out, in)`, or `(out, in)` of each expert; cast to the dtype of rows.
        biases: one `(E, out)`, or `(out,)` of each expert; or none.
        ends: by expert, the place after its last row.
        turned: matrices are `(out, in)`, not `(in, out)`.

    Returns:
        `(R, out)`, with zeros for rows behind the last end.
    """
    runs = Runs.of(ends, len(rows))
    out = runs.times(rows, matrices, turned=turned)
    if biases:
        runs.add(out, biases)
    return out


def _fake_product(
    rows: Tensor, matrices: Sequence[Tensor], biases: Any, ends: Tensor, turned: bool
) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices[0].shape[-2 if turned else -1])


def _gradients(
    grad: Tensor,
    rows: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    ends: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the matrices and biases of `sorted_product`, where `needs` says so."""
    runs, tensors = Runs.of(ends, len(rows)), (*matrices, *biases)
    found = [torch.empty_like(t) if n else None for t, n in zip(tensors, needs, strict=True)]
    runs.outer(grad, rows, found[: len(matrices)])
    runs.total(grad, found[len(matrices) :])
    return [t for t in found if t is not None]


def _fake_gradients(
    grad: Tensor, rows: Tensor, matrices: Any, biases: Any, ends: Tensor, needs: Any
) -> Any:
    tensors = (*matrices, *biases)
    return [torch.empty_like(t) for t, n in zip(tensors, needs, strict=True) if n]


sort_choices = operator("sort_choices", _sort, _fake_sort)
sorted_product = operator("sorted_product", _product, _fake_product)
sorted_gradients = operator("sorted_gradients", _gradients, _fake_gradients)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, matrices, biases, ends, ctx.turned = inputs
    ctx.count = len(matrices)
    ctx.save_for_backward(rows, ends, *matrices, *biases)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    assert ctx.turned
    rows, ends, *tensors = ctx.saved_tensors
    matrices, biases = tensors[: ctx.count], tensors[ctx.count :]
    needs = [t.requires_grad for t in tensors]
    of_rows = sorted_product(grad, matrices, [], ends, False) if rows.requires_grad else None
    found = iter(sorted_gradients(grad, rows, matrices, biases, ends, needs) if any(needs) else ())
    of_tensors = [next(found) if n else None for n in needs]
    return of_rows, of_tensors[: ctx.count], of_tensors[ctx.count :], None, None


torch.library.register_autograd("fuser::sorted_product", _backward, setup_context=_save)


def grouped_moe(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
) -> Tensor:
    """A mixture as a spec says; see `fuser.specs.MoeSpec` for the operands.

    Raises:
        IndexError: an index is of no expert, and none may be dropped.
    """
    of = spec_of(spec)
    if of.runs:
        places = Places.of_runs(indices, x.shape[0])
    else:
        known = is_choice(indices, of) if of.dropping else None
        order, inverse, ends = sort_choices(indices, of.experts, of.dropping)
        places = Places(order, inverse, ends, known)

    def product(rows: Tensor, p: int) -> Tensor:
        own = of_product(of, matrices, p)
        added = of_product(of, biases, sum(of.biases[:p])) if of.biases[p] else []
        return sorted_product(rows, own, added, places.ends, True)

    with torch.autocast(x.device.type, enabled=False):
        return compose(of, x, weights, places, product)


torch.library.define(
    "fuser::grouped_moe", f"({OPERANDS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
torch.library.impl("fuser::grouped_moe", "CompositeImplicitAutograd", grouped_moe)


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
    if not context.excess:
        return "the chosen experts alone are computed already, which is as fast on a CPU"
    if cost.uncounted(call):
        return cost.uncounted(call)
    if not cost.pays_on_cpu(call):
        return "experts have too few rows, or numbers, for a CPU to gain by leaving others out"
    return ""
