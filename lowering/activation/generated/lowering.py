"""Activations by generated Triton kernels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import ActivationSpec

from ...base import Context, Emission, Lowering, Refusal, register_lowering
from ...triton.launch import INTERPRETED_WORK, unavailable
from ...triton.trace import NotPrintable
from ..reference import emit_operator
from .config import Config
from .kernels import build
from .layout import Layout, NoLayout, require

_AS_FAST = (
    "Inductor makes one kernel of such a chain too, which moves the same bytes and saves the same "
    "tensors; nothing faster was measured on any GPU"
)


@register_lowering(ActivationSpec, order=5)
class GeneratedActivation(Lowering):
    """Every program that can be printed, on a GPU, or in Triton's interpreter."""

    name: ClassVar[str] = "triton"
    kind: ClassVar[str] = "triton"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        refusal = unavailable(context.device)
        if refusal:
            return Refusal(refusal)
        spec: ActivationSpec = call.spec
        dtypes = [value(call.operands[f"c{j}"].node).dtype for j in range(len(spec.parts))]
        try:
            _print(spec, dtypes, context.training)
        except (NoLayout, NotPrintable, RuntimeError) as error:
            return Refusal(str(error))

        def emit(builder: Builder) -> Node:
            function = torch.ops.fuser.generated_activation.default
            return emit_operator(builder, call, function, context.origin)

        why = "one kernel, and one back, which starts from the operands"
        if context.device.type == "cpu":
            slower = "the interpreter is for checking numbers"
            return Emission(emit, "triton, interpreted", why, slower, {}, INTERPRETED_WORK)
        return Emission(emit, "triton", why, _AS_FAST, {})


def _print(spec: ActivationSpec, dtypes: list[torch.dtype], training: bool) -> None:
    """Writes kernels for one tile: whether there is text depends on the program alone."""
    require(spec, dtypes)
    names = [f"{d}c{j}" for j in range(len(dtypes)) for d in ("", "d")]
    varies = tuple((name, (True, True)) for name in (*names, "y", "grad"))
    layout = Layout(spec, tuple(dtypes), 0, 1, 64, varies, False)
    build(layout, "forward", (), Config(1, 64))
    if training:
        wanted = tuple(j for j, dtype in enumerate(dtypes) if dtype.is_floating_point)
        build(layout, "backward", (wanted,), Config(1, 64))
