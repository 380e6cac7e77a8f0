"""Activations by generated Triton kernels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import ActivationSpec

from ...base import Context, Emission, register_lowering
from ...triton.kernel import require_dtypes
from ...triton.lowering import GeneratedLowering, printing
from ..reference import emit_operator
from .config import Config
from .kernels import build
from .layout import Layout

_AS_FAST = (
    "Inductor makes one kernel of such a chain too, which moves the same bytes and saves the same "
    "tensors; nothing faster was measured on any GPU"
)


@register_lowering(ActivationSpec, order=5)
class GeneratedActivation(GeneratedLowering):
    """Every program that can be printed."""

    why: ClassVar[str] = "one kernel, and one back, which starts from the operands"

    def offer(self, call: Call, context: Context) -> Emission:
        spec: ActivationSpec = call.spec
        dtypes = [value(call.operands[f"c{j}"].node).dtype for j in range(len(spec.parts))]
        with printing():
            _print(spec, dtypes, context.training)

        def emit(builder: Builder) -> Node:
            function = torch.ops.fuser.generated_activation.default
            return emit_operator(builder, call, function, context.origin)

        return self.emission(emit, context, _AS_FAST)


def _print(spec: ActivationSpec, dtypes: list[torch.dtype], training: bool) -> None:
    """Writes kernels for one tile: whether there is text depends on the program alone."""
    require_dtypes(dtypes, written=[spec.dtype])
    names = [f"{d}c{j}" for j in range(len(dtypes)) for d in ("", "d")]
    varies = tuple((name, (True, True)) for name in (*names, "y", "grad"))
    layout = Layout(spec, tuple(dtypes), 0, 1, 64, varies, False)
    build(layout, "forward", (), Config(1, 64))
    differentiable = spec.dtype.is_floating_point and spec.dtype.itemsize > 1
    if training and differentiable:
        wanted = tuple(j for j, dtype in enumerate(dtypes) if dtype.is_floating_point)
        build(layout, "backward", (wanted,), Config(1, 64))
