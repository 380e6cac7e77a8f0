"""Operands of an attention: which tensor of a chain of views is read, and in which arrangement."""

from __future__ import annotations

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, leaves, resolve
from fuser.graph.ops import value
from fuser.graph.view import GraphView
from fuser.pattern import Operand


def operand_from(
    view: GraphView,
    chain: list[tuple[Node, Dims]],
    target: Dims,
    dtype: torch.dtype,
    fixed: tuple[tuple[Axis, int], ...] = (),
) -> Operand:
    """The nearest tensor in the chain that is arranged as wanted, else the nearest that holds
    nothing repeated. A cast in the chain is part of the operand."""
    target = resolve(target)
    fewest = min(len(leaves(dims)) for _, dims in chain)
    position = next((i for i, (_, dims) in enumerate(chain) if resolve(dims) == target), None)
    if position is None:
        position = next(i for i, (_, dims) in enumerate(chain) if len(leaves(dims)) == fewest)
    position = _past_widening(chain, position)
    node, dims = chain[position]
    reader = chain[position - 1][0] if position else None
    cast = None if value(node).dtype == dtype else dtype
    read_at = view.order[reader] if reader is not None else -1
    return Operand(node, resolve(dims), target, cast, read_at, fixed)


def _past_widening(chain: list[tuple[Node, Dims]], position: int) -> int:
    """If the very next step is an exact upcast, start from the narrow tensor."""
    here = value(chain[position][0]).dtype
    for i in range(position + 1, len(chain)):
        if resolve(chain[i][1]) != resolve(chain[position][1]):
            break
        if value(chain[i][0]).dtype != here:
            return i
    return position


def axes_of(chain: list[tuple[Node, Dims]]) -> set[Axis]:
    """Axes that an operand really has: those left when every repetition is peeled off."""
    return set(leaves(min((dims for _, dims in chain), key=lambda d: len(leaves(d)))))
