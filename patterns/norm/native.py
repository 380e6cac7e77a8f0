"""Functions of torch's that normalise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView

from ..captured import loses_nothing
from ..declined import Declined
from .core import Core

NAMES = ("layer_norm", "rms_norm", "group_norm", "instance_norm", "normalize")
RUNNING = "it normalises with running statistics, or updates them"


def read(view: GraphView, node: Node) -> Core | None:
    """The normalisation that a node is; None where it is another operator.

    Raises:
        Declined: it is one that is not covered.
    """
    op = view.op(node)
    x = op.args.get("input")
    if op.name not in NAMES or not is_tensor(x) or not is_tensor(node):
        return None
    if op.name in ("layer_norm", "rms_norm"):
        found = _by_shape(op, node, x)
    elif op.name == "normalize":
        found = _unit(op, node, x)
    else:
        found = _by_channels(op, node, x)
    return _before_casts(view, found)


def _before_casts(view: GraphView, core: Core) -> Core:
    """The same of what `x` is a copy of, or a cast that changes no number."""
    x, interior = core.x, core.interior
    while True:
        op = view.op(x)
        copies = op.kind is Kind.POINTWISE and not op.inplace and loses_nothing(op, x)
        if not copies or set(x.users) - interior:
            return replace(core, x=x, interior=interior)
        x, interior = op.args["input"], interior | {x}


def _by_shape(op: Op, node: Node, x: Node) -> Core:
    """A layer norm or RMS norm over the last dimensions."""
    shape, rank = op.args["normalized_shape"], value(x).ndim
    shape = value(shape) if isinstance(shape, Node) else shape
    if not isinstance(shape, (tuple, list, int, torch.SymInt)):
        raise Declined("the shape that is normalised is not known while compiling", node)
    count = len(shape) if isinstance(shape, (tuple, list)) else 1
    eps = op.args.get("eps")
    if op.name == "layer_norm":
        eps = 1e-5 if eps is None else eps
    elif eps is None:
        eps = torch.finfo(torch.float32).eps
    return Core(
        node, x, tuple(range(rank - count, rank)), _number(eps, node), torch.float32,
        frozenset({node}), centred=op.name == "layer_norm", **_affine(op, node),
    )  # fmt: skip


def _by_channels(op: Op, node: Node, x: Node) -> Core:
    """A group norm, or an instance norm, which has a group for each channel."""
    if value(x).ndim < 3 and op.name == "instance_norm":
        raise Declined("an instance norm without a batch", node)
    if op.name == "group_norm":
        groups: Any = op.args["num_groups"]
    else:
        if op.args.get("use_input_stats", True) is not True or op.args.get("running_mean"):
            raise Declined(RUNNING, node)
        groups = value(x).shape[1]
    if not isinstance(groups, int):
        raise Declined("the number of groups is not known while compiling", node)
    eps = _number(op.args.get("eps", 1e-5), node)
    inner = tuple(range(1, value(x).ndim))
    return Core(
        node, x, inner, eps, torch.float32, frozenset({node}), groups=groups,
        native=op.name == "group_norm", **_affine(op, node),
    )  # fmt: skip


def _unit(op: Op, node: Node, x: Node) -> Core:
    """`F.normalize`: a division by the norm, or by eps where the norm is less."""
    if not value(x).ndim:
        raise Declined("it is one number", node)
    p, dim = op.args.get("p", 2.0), op.args.get("dim", 1)
    if p != 2 or op.args.get("out") is not None:
        raise Declined("it divides by another norm than the square root of a sum of squares", node)
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if not all(isinstance(d, int) for d in dims):
        raise Declined("the dimension is not known while compiling", node)
    inner = tuple(sorted(d % value(x).ndim for d in dims))
    eps = _number(op.args.get("eps", 1e-12), node)
    return Core(
        node, x, inner, eps, value(node).dtype, frozenset({node}),
        centred=False, summed=True, floor=True,
    )  # fmt: skip


def _affine(op: Op, node: Node) -> dict[str, Any]:
    found = {name: op.args.get(name) for name in ("weight", "bias")}
    for name, parameter in found.items():
        if parameter is not None and not is_tensor(parameter):
            raise Declined(f"its {name} is no tensor", node)
    return found


def _number(eps: Any, node: Node) -> float:
    if isinstance(eps, (int, float)):
        return float(eps)
    raise Declined("eps is not known while compiling", node)
