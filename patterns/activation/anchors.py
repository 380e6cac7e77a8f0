"""Operators that make a pointwise chain an activation."""

from __future__ import annotations

from torch.fx import Node

from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView

GLU = "glu"
"""The one function of torch's that gates a half of a tensor with the other."""
NONLINEAR = frozenset("""
silu gelu relu relu6 sigmoid tanh erf mish hardswish hardsigmoid hardtanh softplus softsign elu celu
selu leaky_relu logsigmoid
""".split())  # fmt: skip


def is_nonlinear(view: GraphView, node: Node) -> bool:
    """Whether an operator is an activation, or what one is written with."""
    op = view.op(node)
    if op.kind is Kind.POINTWISE and op.name in ("clamp", "clamp_min"):
        return op.args.get("min") == 0 and op.args.get("max") is None
    return (op.kind is Kind.POINTWISE and op.name in NONLINEAR) or op.name == GLU


def is_anchor(view: GraphView, node: Node) -> bool:
    """Whether a region may begin at a node: of one number it is not worth it."""
    return is_nonlinear(view, node) and is_tensor(node) and value(node).ndim > 0
