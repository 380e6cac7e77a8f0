"""What stands around an operator: who reads it, and what it is a view of."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import Node

from fuser.graph.axes import same_size
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView
from fuser.shape_readers import reads_shape_alone
from fuser.torch_private import to_expr

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of what pointwise regions compute."""
EIGHT_BITS = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
"""Of what a quantisation gives."""
_REARRANGED = (
    "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
    "transpose", "t", "T", "mT", "movedim", "getitem",
)  # fmt: skip


def readers(view: GraphView, node: Node) -> set[Node]:
    """Who reads elements of a tensor."""
    return {user for user in node.users if not reads_shape_alone(view, user, node)}


def rearranges(view: GraphView, node: Node) -> bool:
    """Whether a node is a view that has every element once."""
    op = view.op(node)
    return op.kind is Kind.VIEW and op.name in _REARRANGED and not op.inplace and is_tensor(node)


def behind_views(
    view: GraphView, node: Node, inside: Collection[Node], kept: Node | None = None
) -> tuple[set[Node], Node]:
    """What a tensor is a rearrangement of, and the views between: read for it alone, or `kept`."""
    passed: set[Node] = set()
    while rearranges(view, node) and (node is kept or readers(view, node) <= {*inside, *passed}):
        passed.add(node)
        node = view.op(node).args["input"]
    return passed, node


def same_shape(a: Node, b: Node) -> bool:
    """Whether two tensors have one shape; nothing is assumed of symbols."""
    x, y = value(a).shape, value(b).shape
    sizes = zip(x, y, strict=True) if len(x) == len(y) else ()
    return len(x) == len(y) and all(same_size(to_expr(s), to_expr(t)) for s, t in sizes)
