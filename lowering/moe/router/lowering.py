"""Routers by generated Triton kernels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import RouterSpec

from ...base import Context, Emission, Lowering, Refusal, register_lowering, size
from ...triton.launch import INTERPRETED_WORK, unavailable
from ...triton.trace import NotPrintable
from .layout import NoLayout, layout_of
from .reference import emit
from .text import build

_UNMEASURED = "what it gains over the operators of the region has not been measured on any GPU"


@register_lowering(RouterSpec, order=5)
class GeneratedRouter(Lowering):
    """Every router whose programs can be printed, on a GPU, or in Triton's interpreter."""

    name: ClassVar[str] = "triton"
    kind: ClassVar[str] = "triton"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        refusal = unavailable(context.device)
        if refusal:
            return Refusal(refusal)
        spec: RouterSpec = call.spec
        logits, *captured = (value(operand.node) for operand in call.operands.values())
        experts = size(call, "logits", 1)
        if experts is None:
            return Refusal("the number of experts is not known while compiling")
        try:
            layout = layout_of(spec, experts, logits.dtype, tuple(b.dtype for b in captured))
            for stage in ("forward", "backward") if context.training else ("forward",):
                build(layout, stage)
        except (NoLayout, NotPrintable, RuntimeError) as error:
            return Refusal(str(error))

        def put(builder: Builder) -> list[Node]:
            return emit(builder, call, torch.ops.fuser.generated_router.default, context.origin)

        why = "one kernel chooses experts and weighs them"
        if context.device.type == "cpu":
            slower = "the interpreter is for checking numbers"
            return Emission(put, "triton, interpreted", why, slower, {}, INTERPRETED_WORK)
        return Emission(put, "triton", why, _UNMEASURED, {})
