"""Attention by generated Triton kernels: any score program, forward and backward."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import leaves, size_of
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.pattern import Operand as Place
from fuser.specs import AttentionSpec
from fuser.torch_private import hint

from ...base import Context, Emission, register_lowering, size
from ...triton.kernel import NoKernel
from ...triton.lowering import GeneratedLowering, printing
from .. import gpu
from ..diagonals import Diagonals
from ..factors import unscaled
from ..positions import absorb, is_alive
from ..reference import emit_operator
from .build import check
from .layout import AXES, Captured, Layout, Operand
from .numerics import tables_of


@register_lowering(AttentionSpec, order=30)
class GeneratedAttention(GeneratedLowering):
    """Every program that can be printed."""

    why: ClassVar[str] = "the program is printed into a kernel"

    def offer(self, call: Call, context: Context) -> Emission:
        layout = layout_of_call(call, context)
        plain = call if layout.faithful else unscaled(call, context.folder.view)
        absorbed = absorb(plain, context.folder)
        layout = layout_of_call(absorbed, context)
        with printing():
            check(layout, training=context.training)
        names = [name for name in absorbed.operands if name[0] == "c"]
        relative = [Diagonals(absorbed, name, context.folder) for name in names]
        diagonals = {d.operand: d for d in relative if d.applies()}

        def emit(builder: Builder) -> Node:
            function = torch.ops.fuser.generated_attention.default
            used = absorbed if is_alive(absorbed) else call
            made = _Captured(builder, used, diagonals)
            out = emit_operator(
                builder, used, function, context.origin, context.atomics, captured=made
            )
            return builder.call(operator.getitem, out, 0)

        share = gpu.share(layout.spec.mask, size(call, "q0", 2), size(call, "k0", 2))
        return self.emission(emit, context, gpu.slower(call), gpu.GENERATED * share)


def layout_of_call(call: Call, context: Context) -> Layout:
    """What the operands will look like, once they are arranged."""
    spec: AttentionSpec = call.spec
    found: dict[str, Operand] = {}
    for name, place in call.operands.items():
        if name[0] in "qkv":
            features = size(call, name, 3)  # a symbol's, which running the operator guards
            if features is None:
                raise NoKernel("the number of features is counted in the data")
            found[name] = Operand(_dtype(place), features)
    tables = tables_of(spec)
    captured = [_captured(call.operands[f"c{i}"], f"c{i}" in tables) for i in range(spec.captured)]
    products = range(spec.contractions)
    return Layout(
        spec,
        tuple(found[f"q{i}"] for i in products),
        tuple(found[f"k{i}"] for i in products),
        found["v"],
        tuple(captured),
        size_of(leaves((call.operands["q0"].target[1],)))
        != size_of(leaves((call.operands["v"].target[1],))),
        interpreted=context.device.type == "cpu",
    )


class _Captured:
    """Puts captured operands there as the kernels read them fastest."""

    def __init__(self, builder: Builder, call: Call, diagonals: Mapping[Place, Diagonals]) -> None:
        self.builder, self.call, self.diagonals = builder, call, diagonals
        self.tables = tables_of(call.spec)

    def __call__(self, name: str) -> Node:
        place = self.call.operands[name]
        diagonals = self.diagonals.get(place)
        if diagonals is not None and diagonals.is_alive():
            return diagonals.emit(self.builder)
        node = self.builder.operand(place)
        whole = len(place.target) == 4 and name not in self.tables
        if whole and _is_scattered(value(node)):
            return self.builder.method("contiguous", node)
        return node


def _is_scattered(x: torch.Tensor) -> bool:
    """Whether neighbours along the last dimension are apart, and a copy is no larger: each element
    is read many times."""
    if x.ndim == 0 or hint(x.shape[-1]) == 1:
        return False
    expanded = any(hint(n) != 1 and hint(s) == 0 for n, s in zip(x.shape, x.stride(), strict=True))
    return hint(x.stride(-1)) != 1 and not expanded


def _dtype(place: Place) -> torch.dtype:
    if place.dtype is not None:
        return place.dtype
    example = value(place.node)
    return example.dtype if isinstance(example, torch.Tensor) else torch.float64


def _captured(place: Place, is_table: bool) -> Captured:
    if is_table:
        return Captured(_dtype(place), "", False, len(place.target))
    own = set(leaves(place.dims))
    along = zip(AXES, place.target, strict=False)
    axes = "".join(letter for letter, dim in along if own & set(leaves((dim,))))
    return Captured(_dtype(place), axes, not place.target)
