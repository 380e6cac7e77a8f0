"""Kernels of regions, generated and compiled ahead of time for a device that need not be there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import TritonMissingError, first_sentence
from ..graph.ops import value
from ..kernels import Entry, Survey, survey
from ..lowering.activation.generated import catalogue as activation
from ..lowering.activation.generated.problem import Problem as Activation
from ..lowering.attention import gpu
from ..lowering.attention.generated import catalogue as attention
from ..lowering.attention.generated.lowering import layout_of_call as attention_layout
from ..lowering.attention.positions import absorb
from ..lowering.base import Context, size
from ..lowering.moe.cost import rows_of_expert
from ..lowering.moe.generated import catalogue as moe
from ..lowering.moe.generated.lowering import layout_of_call as moe_layout
from ..lowering.moe.router import catalogue as router
from ..lowering.moe.router.layout import layout_of as router_layout
from ..lowering.norm.generated import catalogue as norm
from ..lowering.norm.generated.problem import Problem as Norm
from ..lowering.norm.generated.problem import Statistics
from ..lowering.norm.generated.run import backward, forward
from ..lowering.triton.launch import TARGETS
from ..pattern import Call
from ..specs import ActivationSpec, AttentionSpec, MoeSpec, NormSpec, RouterSpec
from ..standing import number
from ..swallowed import swallow
from .parts import Parts, Region


def compiled_ahead(
    regions: Sequence[tuple[Region, Parts]], arch: str
) -> tuple[Survey | None, list[str]]:
    """Registers, spills, shared memory and occupancy of the kernels that regions would launch.

    Args:
        regions: and the graphs that they are in. A loss has no generated kernels.
        arch: one of `lowering.triton.devices.DEVICES`.

    Returns:
        the kernels, None where there are none; and why some were not compiled.
    """
    entries: list[Entry] = []
    problems: dict[str, None] = {}
    for region, parts in regions:
        for call in region.planned.match.calls:
            try:
                training = parts.training and value(region.planned.match.outputs[0]).requires_grad
                entries += _entries(region.pattern, call, parts, training, arch)
            except Exception as error:
                swallow(error)
                problems[f"no kernel for {region.pattern}: {first_sentence(error)}"] = None
    try:
        return (survey(entries, [arch]) if entries else None), list(problems)
    except TritonMissingError as error:
        return None, [*problems, f"kernels were not compiled: {error}"]


def _entries(label: str, call: Call, parts: Parts, training: bool, arch: str) -> Iterator[Entry]:
    spec = call.spec
    context = Context(torch.device("cuda"), training, False, "inductor", parts.folder)
    if isinstance(spec, AttentionSpec):
        yield from _attention(label, absorb(call, parts.folder), context)
    elif isinstance(spec, MoeSpec):
        yield from _mixture(label, call, context)
    elif isinstance(spec, RouterSpec):
        yield from _router(label, call, training)
    elif isinstance(spec, NormSpec):
        yield from _norm(label, call, training, arch)
    elif isinstance(spec, ActivationSpec):
        yield from _activation(label, call, training, arch)


def _attention(label: str, call: Call, context: Context) -> Iterator[attention.Entry]:
    layout = attention_layout(call, context)
    batch_heads = [size(call, name, 1) or 1 for name in ("q0", "v")]
    queries, keys = size(call, "q0", 2), size(call, "k0", 2)
    rows = (queries or attention.LONG) * (batch_heads[0] // batch_heads[1] if layout.grouped else 1)
    seen = None if keys is None else keys * gpu.share(layout.spec.mask, queries, keys)
    visits = attention.SHORT if seen is not None and seen < attention.LONG else None
    yield from attention.of_layout(label, layout, rows, visits, training=context.training)


def _mixture(label: str, call: Call, context: Context) -> Iterator[moe.Entry]:
    layout = moe_layout(call, context)
    yield from moe.of_layout(label, layout, rows_of_expert(call), training=context.training)


def _router(label: str, call: Call, training: bool) -> Iterator[router.Entry]:
    dtypes = [value(call.operands[f"b{j}"].node).dtype for j in range(call.spec.captured)]
    experts, logits = size(call, "logits", 1), value(call.operands["logits"].node).dtype
    if experts is not None:
        layout = router_layout(call.spec, experts, logits, tuple(dtypes))
        for stage in router.TEXTS if training else ("forward",):
            yield router.Entry(label, layout, stage)


def _made_up(call: Call) -> list[Tensor]:
    """Captured operands without numbers, arranged and contiguous."""
    found = []
    for name in (f"c{i}" for i in range(len(call.operands))):
        place = call.operands[name]
        own = {axis for dim in place.dims for axis in dim}
        sizes = [
            number(size(call, name, d) or 1) if own & set(dim) else 1
            for d, dim in enumerate(place.target)
        ]
        dtype = (place.dtype or value(place.node).dtype).to_real()  # a complex one is pairs
        found.append(torch.empty(sizes, dtype=dtype, device="meta"))
    return found


def _norm(label: str, call: Call, training: bool, arch: str) -> Iterator[norm.Entry]:
    captured, spec = _made_up(call), call.spec
    shape = torch.broadcast_shapes(*(x.shape for x in captured))
    shape = shape[: len(shape) - spec.apart]
    of = Norm(spec, captured, tuple(shape), "", TARGETS[arch], False)
    with norm.recording() as found:
        *results, means, lows, scales = forward(of, keep=training)
        if training:
            needs = [x.is_floating_point() for x in captured]
            backward(of, dict(enumerate(results)), Statistics(means, lows, scales), needs)
    yield from (replace(entry, label=label) for entry in found.values())


def _activation(label: str, call: Call, training: bool, arch: str) -> Iterator[activation.Entry]:
    captured = _made_up(call)
    of = Activation(call.spec, captured, "", TARGETS[arch], False)
    with activation.recording() as found:
        y: Any = of.forward()
        if training:
            of.backward(torch.empty_like(y), [x.is_floating_point() for x in captured])
    yield from (replace(entry, label=label) for entry in found.values())
