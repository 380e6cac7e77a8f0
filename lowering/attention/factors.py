"""Numbers that q or k are multiplied with before their product: the scores can be, instead.

`(q · scale) kᵀ` writes a tensor like q, and another for its gradient, which a kernel that has the
scores at hand saves. What the number does there is not rounded to half precision. Where scores
beyond 1e34 were kept finite by it, they may now not be.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView
from fuser.pattern import Call, Operand

LARGEST = 2.0**12
"""Numbers up to here, and down to one over it, are scales; others may keep q from overflowing."""


def unscaled(call: Call, view: GraphView) -> Call:
    """The same attention with q and k as they were before they were multiplied with numbers.

    A tensor that somebody else reads is there anyway, and stays.

    Args:
        call: of an attention; its score program is not faithful to roundings.
        view: the graph that its operands are in.
    """
    operands, factors = dict(call.operands), dict[str, float]()
    for name, operand in call.operands.items():
        found = _unscaled(operand, view) if name[0] in "qk" else None
        if found is not None:
            operands[name], factor = found
            factors[f"s{name[1:]}"] = factors.get(f"s{name[1:]}", 1.0) * factor
    if not factors:
        return call
    return Call(replace(call.spec, score=call.spec.score.scaled(factors)), operands)


def _unscaled(operand: Operand, view: GraphView) -> tuple[Operand, float] | None:
    """The operand before it was multiplied, and with what; None where it was not."""
    found, factor = operand, 1.0
    node, dims = operand.node, operand.dims
    while operand.dtype is None and len(node.users) == 1:  # otherwise it is there anyway
        op = view.op(node)
        try:
            if op.kind is Kind.VIEW:
                node, dims = pull_view(op, node, dims)
                continue
        except Unproven:
            break
        product = _product(node, view)
        if product is None:
            break
        node, factor = product[0], factor * product[1]
        found = replace(operand, node=node, dims=dims, read_at=-1)
    return None if found is operand else (found, factor)


def _product(node: Node, view: GraphView) -> tuple[Node, float] | None:
    """The tensor and the number of which a node is the product, if it is nothing else."""
    op = view.op(node)
    if op.name not in ("mul", "div") or op.inplace or op.args.get("rounding_mode") is not None:
        return None
    source, number = op.args["input"], op.args["other"]
    if op.name == "mul" and is_tensor(number):
        source, number = number, source
    if not is_tensor(source) or isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    if not 1 / LARGEST <= abs(number) <= LARGEST:
        return None
    if not _is_the_same(value(source), value(node)) or _is_apart(source, node, view):
        return None
    return source, 1 / number if op.name == "div" else float(number)


def _is_the_same(source: Any, result: Any) -> bool:
    """Whether a product has the dtype of the tensor, and passes on its gradient."""
    wanted = torch.is_grad_enabled() and source.requires_grad and not result.requires_grad
    return source.dtype is result.dtype and source.dtype.is_floating_point and not wanted


def _is_apart(source: Node, node: Node, view: GraphView) -> bool:
    """Whether the tensor is another later, or an argument of a transform."""
    order = view.order
    if any(start <= order[node] < end for start, end in view.transformed):
        return True
    return view.mutated_between(source, order[node], len(order)) is not None
