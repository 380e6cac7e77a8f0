"""How a linear layer's cross-entropy is put into a graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import LinearCrossEntropySpec


def emit(builder: Builder, call: Call, function: Any, *, ahead: bool | None = None) -> Node:
    """An operator on the operands of a call.

    Args:
        builder: of the region.
        call: what is computed.
        function: the operator.
        ahead: whether gradients are computed with the result, where the operator can.
    """
    spec: LinearCrossEntropySpec = call.spec
    place = {name: builder.operand(operand) for name, operand in call.operands.items()}
    captured = [_number(builder, place[f"c{i}"]) for i in range(spec.captured)]
    x, weight, bias = place["x"], place["weight"], place.get("bias")
    factors = [_product(builder, place, prefix) for prefix in ("", "square_")]
    given = [x, weight, bias, place["target"], *factors, captured, spec.to_text()]
    if ahead is None:
        return builder.call(function, *given)
    flags = [ahead and _needs(t) for t in (x, weight, bias)]
    flags.append(ahead and any(map(_needs, captured)))
    return builder.call(operator.getitem, builder.call(function, *given, flags), 0)


def _number(builder: Builder, node: Node) -> Node:
    """A tensor of one element without dimensions."""
    return builder.method("reshape", node, ()) if value(node).ndim else node


def _product(builder: Builder, place: dict[str, Node], prefix: str) -> Node | None:
    """Of all `times` over all `over`; None where there are none."""
    found: Node | None = None
    for name, node in place.items():
        kind = name.rpartition("_")[0]
        if kind == f"{prefix}times":
            found = node if found is None else builder.call(torch.mul, found, node)
    for name, node in place.items():
        if name.rpartition("_")[0] == f"{prefix}over":
            found = builder.call(operator.truediv, 1.0 if found is None else found, node)
    return found


def _needs(node: Node | None) -> bool:
    return node is not None and value(node).requires_grad
