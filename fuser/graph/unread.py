"""Reads that nobody uses: the other results of `max`, a shape that was unpacked.

Dynamo takes them out of a graph, and leaves them in the bodies of higher-order operators. There a
value would seem to be read by somebody outside of a region.
"""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node


def forget(module: GraphModule) -> None:
    """Take them out of a graph."""
    for node in reversed(module.graph.nodes):
        if _is_read(node) and not node.users:
            module.graph.erase_node(node)
    module.recompile()


def is_size(node: Node) -> bool:
    """`x.size(0)`, `x.size()`, `x.shape`."""
    shape = node.target is getattr and node.args[1:] == ("shape",)
    return shape or (node.op == "call_method" and node.target == "size")


def _is_read(node: Node) -> bool:
    """Whether a node does nothing but hand on a part of a value, or its shape."""
    return is_size(node) or (node.op == "call_function" and node.target is operator.getitem)
