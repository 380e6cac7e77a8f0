"""Routers by generated Triton kernels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import RouterSpec

from ...base import Context, Emission, register_lowering, size
from ...triton.kernel import NoKernel
from ...triton.lowering import GeneratedLowering, printing
from .layout import layout_of
from .reference import emit
from .text import build

_UNMEASURED = "what it gains over the operators of the region has not been measured on any GPU"


@register_lowering(RouterSpec, order=5)
class GeneratedRouter(GeneratedLowering):
    """Every router whose programs can be printed."""

    why: ClassVar[str] = "one kernel chooses experts and weighs them"

    def offer(self, call: Call, context: Context) -> Emission:
        spec: RouterSpec = call.spec
        logits, *captured = (value(operand.node) for operand in call.operands.values())
        experts = size(call, "logits", 1)
        if experts is None:
            raise NoKernel("the number of experts is not known while compiling")
        with printing():
            layout = layout_of(spec, experts, logits.dtype, tuple(b.dtype for b in captured))
            for stage in ("forward", "backward") if context.training else ("forward",):
                build(layout, stage)

        def put(builder: Builder) -> list[Node]:
            return emit(builder, call, torch.ops.fuser.generated_router.default, context.origin)

        return self.emission(put, context, _UNMEASURED)
