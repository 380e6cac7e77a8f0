"""Mixtures of experts by generated Triton kernels, forward and backward."""

from __future__ import annotations

import operator
from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import MoeSpec

from ...base import Context, Emission, register_lowering, size
from ...triton.kernel import NoKernel
from ...triton.lowering import GeneratedLowering, printing
from .. import cost
from ..operators import emit, weight_dtype
from .build import build
from .config import INTERPRETED
from .layout import Layout, Matrix, layout_of


@register_lowering(MoeSpec, order=5)
class GeneratedMoe(GeneratedLowering):
    """Every activation that can be printed."""

    why: ClassVar[str] = (
        "each token goes through its own experts alone, and the host waits for nothing"
    )

    def offer(self, call: Call, context: Context) -> Emission:
        with printing():
            layout = layout_of_call(call, context)
            for stage, arguments in (("up", (True, True)), ("hidden", ())):
                if stage == "up" or context.training:
                    build(layout, stage, arguments, INTERPRETED)

        def put(builder: Builder) -> Node:
            function = torch.ops.fuser.generated_moe.default
            out = emit(builder, call, function, context.origin, context.training)
            return builder.call(operator.getitem, out, 0)

        work = cost.generated(call, training=context.training)
        return self.emission(
            put, context, cost.uncounted(call) or _slower(layout, context, work), work
        )


def _slower(layout: Layout, context: Context, work: float) -> str:
    """Why the inner backend is expected to be as fast, in plain words; else empty."""
    if not context.native:
        return ""
    if layout.dtype is torch.float32:
        return "rows are sorted and multiplied in groups already, in fp32 without tensor cores"
    if work > cost.LIBRARY:
        return "rows are sorted already, and the library is faster where experts have many"
    return ""


def layout_of_call(call: Call, context: Context) -> Layout:
    """What the operands will look like, once they are arranged."""
    spec: MoeSpec = call.spec
    each = spec.experts if spec.separate else 1
    firsts = spec.matrices[::each]
    for names in (spec.matrices, spec.added):
        for start in range(0, len(names), each):
            if len({_dtype(call, name) for name in names[start : start + each]}) > 1:
                raise NoKernel("matrices of experts have different dtypes")
    return layout_of(
        spec,
        _dtype(call, "x"),
        weight_dtype(call),
        [_matrix(call, name) for name in firsts],
        [_dtype(call, name) for name in spec.added[::each]],
        interpreted=context.device.type == "cpu",
    )


def _matrix(call: Call, name: str) -> Matrix:
    """Sizes are as in the example where they are symbols, which running the operator guards."""
    last = len(call.operands[name].target) - 1
    return Matrix(size(call, name, last - 1), size(call, name, last), _dtype(call, name))


def _dtype(call: Call, name: str) -> torch.dtype:
    place = call.operands[name]
    return place.dtype or value(place.node).dtype
