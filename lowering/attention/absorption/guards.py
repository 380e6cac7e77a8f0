"""Which tensors a program may read, and which producers it may go past."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.ops import Kind, is_tensor, value
from fuser.torch_private import symbols

if TYPE_CHECKING:
    from .follow import Follower

_HALF = (torch.float16, torch.bfloat16)
_DTYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32,
    *_HALF,
}  # fmt: skip
_ROUNDED_ONCE = {
    "add", "sub", "mul", "div", "neg", "abs", "where", "masked_fill", "maximum", "minimum",
    "clamp", "to", "type_as", "type", "half", "bfloat16", "clone", "contiguous",
}  # fmt: skip
"""Operators whose result in half precision is that in single precision, rounded."""


def require_readable(follower: Follower, node: Node) -> None:
    """A tensor whose elements are in the end what they were when it was made.

    Raises:
        Unproven: it is not, or no kernel reads it.
    """
    example = value(node)
    if example.dtype not in _DTYPES or example.device != follower.device:
        raise Unproven("a dtype or device that kernels do not read")
    if follower.positions.view.is_written(node):
        raise Unproven("a tensor that is written to")
    if symbols(example.shape) - follower.view.input_symbols:
        raise Unproven("a size that depends on data")


def require_transparent(follower: Follower, node: Node) -> None:
    """A producer of whose inputs nothing but its value comes, and to which all gradients go.

    Raises:
        Unproven: it is another.
    """
    op, example, order = follower.view.op(node), value(node), follower.view.order[node]
    if (op.inplace and op.kind is not Kind.POINTWISE) or example.dtype not in _DTYPES:
        raise Unproven("no function of its inputs, or of an unusual dtype")
    if any(start <= order < end for start, end in follower.view.transformed):
        raise Unproven("inside a torch.func transform")
    inputs = [value(n) for n in node.all_input_nodes if is_tensor(n)]
    if torch.is_grad_enabled() and not example.requires_grad:
        if any(x.requires_grad for x in inputs):
            raise Unproven("a gradient stops here")
    rounds = example.dtype in _HALF and op.kind is Kind.POINTWISE
    if rounds and op.name not in _ROUNDED_ONCE:
        raise Unproven("a function in half precision")
