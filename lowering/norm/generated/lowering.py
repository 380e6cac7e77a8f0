"""Norms by generated Triton kernels, forward and backward."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import leaves, size_of
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import NormSpec
from fuser.specs.norm import operand_of

from ...base import Context, Emission, register_lowering
from ...triton.kernel import NoKernel, require_dtypes
from ...triton.lowering import GeneratedLowering, printing
from ..reference import emit_operator
from .backward import Needs
from .build import build
from .config import BACKWARD, FORWARD, Config
from .layout import Layout

_UNMEASURED = "it was measured on no GPU yet, and Inductor fuses a norm with its neighbours itself"


@register_lowering(NormSpec, order=5)
class GeneratedNorm(GeneratedLowering):
    """Every program that can be printed."""

    why: ClassVar[str] = "what is pointwise around the norm is computed while its rows are at hand"

    def offer(self, call: Call, context: Context) -> Emission:
        spec: NormSpec = call.spec
        if spec.peak is not None and context.training:
            raise NoKernel("its kernels have no gradient of the largest of a row")
        if spec.groups and spec.single > 1:
            raise NoKernel("the elements of its groups have several dimensions")
        if (spec.bare or spec.peak is not None) and not _is_short(call):
            raise NoKernel("its rows have no size that is known, or are too long for one tile")
        with printing():
            _print(spec, [_dtype(call, f"c{i}") for i in range(spec.captured)], context.training)

        def emit(builder: Builder) -> list[Node]:
            function = torch.ops.fuser.generated_norm.default
            return emit_operator(builder, call, function, context.origin, context.training)

        return self.emission(emit, context, _UNMEASURED)


def _print(spec: NormSpec, dtypes: list[torch.dtype], training: bool) -> None:
    """Writes kernels for rows of one tile: whether there is text depends on the programs alone."""
    require_dtypes((*dtypes, spec.norm_dtype), written=spec.results)
    read = {n for program in spec.after for n in program.inputs}
    own = [f"c{i}" for i, _ in enumerate(dtypes)]
    own = [m for n in own for m in _members(spec, n, read)]
    names = [n for n in own if dtypes[operand_of(n)].is_floating_point]
    results = [f"{name}{i}" for i, _ in enumerate(spec.dtypes) for name in ("y_", "grad")]
    results = [f"{name}{m}" for name in (*results, "x_out", "grad_x") for m in spec.members]
    tensors = [*own, *(f"d{n}" for n in names), *results]
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
        every = tuple(range(len(spec.dtypes)))
        needs = Needs(tuple(n for n in names if n in layout.read), every, spec.kept is not None)
        build(layout, "whole_backward", (needs,), config)


def _members(spec: NormSpec, name: str, read: Collection[str]) -> list[str]:
    """The names of an operand, given what programs read."""
    if name in read or not spec.parts:
        return [name]
    every = [f"{name}{member}" for member in spec.members]
    return every if name in spec.before.inputs else [n for n in every if n in read]


def _is_short(call: Call) -> bool:
    """Whether a row is known to fit a tile; there is a backward where nothing is rounded."""
    dims, spec = next(iter(call.operands.values())).target, call.spec
    row = leaves(dims[len(dims) - spec.inner - spec.apart :])
    wide = sum({*row} <= {*leaves(operand.dims)} for operand in call.operands.values())
    most = FORWARD.longest(wide, spec.inner) if spec.peak else BACKWARD.whole // 2
    length = size_of(row)
    return isinstance(length, int) and length <= most


def _dtype(call: Call, name: str) -> torch.dtype:
    place = call.operands[name]
    return place.dtype or value(place.node).dtype.to_real()
