"""Norms by generated Triton kernels, forward and backward."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import NormSpec

from ...base import Context, Emission, Lowering, Refusal, register_lowering
from ...triton.launch import INTERPRETED_WORK, unavailable
from ...triton.trace import NotPrintable
from ..reference import emit_operator
from .backward import Needs
from .build import build
from .config import Config
from .layout import Layout, NoLayout, require

_UNMEASURED = "it was measured on no GPU yet, and Inductor fuses a norm with its neighbours itself"


@register_lowering(NormSpec, order=5)
class GeneratedNorm(Lowering):
    """Every program that can be printed, on a GPU, or in Triton's interpreter."""

    name: ClassVar[str] = "triton"
    kind: ClassVar[str] = "triton"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        refusal = unavailable(context.device)
        if refusal:
            return Refusal(refusal)
        spec: NormSpec = call.spec
        try:
            _print(spec, [_dtype(call, f"c{i}") for i in range(spec.captured)], context.training)
        except (NoLayout, NotPrintable, RuntimeError) as error:
            return Refusal(str(error))

        def emit(builder: Builder) -> list[Node]:
            function = torch.ops.fuser.generated_norm.default
            return emit_operator(builder, call, function, context.origin, context.training)

        why = "what is pointwise around the norm is computed while its rows are at hand"
        if context.device.type == "cpu":
            slower = "the interpreter is for checking numbers"
            return Emission(emit, "triton, interpreted", why, slower, {}, INTERPRETED_WORK)
        return Emission(emit, "triton", why, _UNMEASURED, {})


def _print(spec: NormSpec, dtypes: list[torch.dtype], training: bool) -> None:
    """Writes kernels for rows of one tile: whether there is text depends on the programs alone."""
    require(spec, dtypes)
    names = [f"c{i}" for i, d in enumerate(dtypes) if d.is_floating_point]
    tensors = [f"c{i}" for i in range(spec.captured)] + [f"d{n}" for n in names]
    tensors += ["y", "x_out", "grad", "grad_x"]
    varies = [
        *((n, (True, True)) for n in tensors),
        ("means", (True, False)),
        ("lows", (True, False)),
    ]
    layout = Layout(
        spec, tuple(dtypes), 0, 1, (64,), (*varies, ("scales", (True, False))), False, False
    )
    config = Config(1, 1, 64)
    build(layout, "whole", (True,), config)
    if training:
        read = {n for p in (spec.before, spec.after) for n in p.inputs}
        needs = Needs(tuple(n for n in names if n in read), spec.kept is not None)
        build(layout, "whole_backward", (needs,), config)


def _dtype(call: Call, name: str) -> torch.dtype:
    place = call.operands[name]
    return place.dtype or value(place.node).dtype
