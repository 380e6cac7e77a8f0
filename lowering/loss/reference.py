"""The oracle: all logits at once, in the original order, as the composite operator
`fuser::whole_linear_cross_entropy`, which autograd and the inner backend see through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import LinearCrossEntropySpec, Reduction

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from .emission import emit
from .problem import problem_of

OPERANDS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? weights, Tensor? squares, "
    "Tensor[] captured, str spec"
)
WORK = 4.0


def whole_linear_cross_entropy(*operands: Any) -> Tensor:
    """The loss as its spec says; see `fuser.specs.LinearCrossEntropySpec` for the operands."""
    of = problem_of(operands)
    spec = of.spec
    with torch.autocast(of.x.device.type, enabled=False):
        logits = of.after(F.linear(of.x, of.weight, of.bias), of.captured)
        ignored = -100 if spec.ignore_index is None else spec.ignore_index
        nll = F.cross_entropy(
            logits,
            of.target.long(),
            reduction="none",
            ignore_index=ignored,
            label_smoothing=spec.smoothing,
        )
        loss, square = of.counts()
        if spec.reduction is Reduction.NONE:
            return (nll * loss.factors).to(spec.dtype)
        result = loss.sum(nll)
        if square is not None:
            result = result + square.sum(torch.logsumexp(logits, -1).square())
    return result.to(spec.dtype)


def gradients(grad: Tensor, operands: Sequence[Any]) -> tuple[Any, ...]:
    """Of all operands but the spec, such that gradients of them can be taken again."""
    *tensors, captured, spec = operands
    count = len(tensors)
    given = [*tensors, *captured]
    wanted = [t for t in given if t is not None and t.requires_grad]
    with torch.enable_grad():
        loss = whole_linear_cross_entropy(*tensors, captured, spec)
        made = torch.autograd.grad(loss, wanted, grad, create_graph=True, allow_unused=True)
    found = iter(made)
    each = [next(found) if t is not None and t.requires_grad else None for t in given]
    return (*each[:count], each[count:])


torch.library.define(
    "fuser::whole_linear_cross_entropy", f"({OPERANDS}) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
torch.library.impl(
    "fuser::whole_linear_cross_entropy", "CompositeImplicitAutograd", whole_linear_cross_entropy
)


@register_lowering(LinearCrossEntropySpec, order=100)
class Reference(Lowering):
    """`fuser::whole_linear_cross_entropy`: always possible, and no less memory."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def put(builder: Builder) -> Node:
            return emit(builder, call, torch.ops.fuser.whole_linear_cross_entropy.default)

        slower = "it has all logits at once, as the inner backend does"
        return Emission(put, "reference", "takes every linear cross-entropy", slower, {}, WORK)
