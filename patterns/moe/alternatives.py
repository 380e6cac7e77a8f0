"""A term that is several experts: a sum of them, or the one that a mask tells.

weight * (a + b)        where(mask, expert, others)     where(mask, out + expert, out)

Where one of two is taken, each is one of the experts beside its mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, broadcast, leaves
from fuser.graph.ops import Op, is_tensor, value

from ..declined import Declined
from .additions import added_by
from .branches import Branch, Kept
from .expert import ExpertWalk
from .filling import filled_with
from .rows import rows_of
from .space import Place, Space


@dataclass(frozen=True)
class _Part:
    """A summand, and by which masks it is kept."""

    node: Node
    dims: Dims
    kept: tuple[Kept, ...] = ()


def branches_of(space: Space, node: Node, dims: Dims) -> list[Branch]:
    """The experts that a term is made of, each with its weights and masks.

    Raises:
        Declined: it is something else, or not of experts alone.
    """
    rows = rows_of(space, node, dims)
    before = set(space.interior)
    try:
        expert = ExpertWalk(space).run(rows.node, rows.dims)
        return [Branch(expert, rows.weights.times(expert.inside))]
    except (Declined, Unproven) as error:
        space.interior.clear()
        space.interior.update(before)
        try:
            parts = list(_parts(space, rows.node, rows.dims))
            found = [b for part in parts for b in _beside(space, part)]
        except (Declined, Unproven):
            found = []
        if not found:
            raise error
    return [replace(b, weights=rows.weights.times(b.weights)) for b in found]


def _beside(space: Space, part: _Part) -> list[Branch]:
    alone = Space(space.view, space.dtype, space.tokens, interior=space.interior)
    found = branches_of(alone, part.node, part.dims)
    return [replace(b, kept=(*part.kept, *b.kept)) for b in found]


def _parts(space: Space, node: Node, dims: Dims) -> Iterator[_Part]:
    """What a node adds up, or chooses from; nothing where it does something else."""
    view, op = space.view, space.view.op(node)
    if op.inplace or view.is_written(node):
        return
    alone = len(node.users) == 1 or set(node.users) <= space.interior
    added = added_by(view, node) if alone else None
    if added is not None:
        parts = [_Part(n, broadcast(dims, value(n).shape)) for n in added]
    elif op.name == "masked_fill":
        parts = _chosen(space, op, dims, op.args["mask"], op.args["value"], op.args["input"])
    elif op.name == "where":
        given = (op.args.get(name) for name in ("condition", "input", "other"))
        parts = _chosen(space, op, dims, *given)
    else:
        return
    space.interior.add(node)
    for part in parts:
        same = value(part.node).dtype is value(node).dtype and part.dims == dims
        if filled_with(view, part.node, view.order[node]) == 0:
            continue
        if not same:
            raise Unproven("a part of a term has another shape or dtype")
        yield part


def _chosen(
    space: Space, op: Op, dims: Dims, condition: Any, there: Any, elsewhere: Any
) -> list[_Part]:
    """What `where` chooses from.

    Raises:
        Unproven: the mask is one of features.
    """
    if not is_tensor(condition):
        raise Unproven("a condition that is no tensor")
    mask = Place(condition, broadcast(dims, value(condition).shape))
    if set(leaves(mask.dims)) - space.row_axes:
        raise Unproven("a mask of features")
    inside, outside = (Kept(mask, inverted) for inverted in (False, True))
    for side, other, kept in ((there, elsewhere, inside), (elsewhere, there, outside)):
        rest = _without(space, side, other)
        if rest is not None:
            space.interior.add(side)
            return [_of(other, dims), _of(rest, dims, kept)]
    sides = ((there, inside), (elsewhere, outside))
    return [_of(n, dims, kept) for n, kept in sides if is_tensor(n) or n != 0]


def _of(node: Any, dims: Dims, *kept: Kept) -> _Part:
    if not is_tensor(node):
        raise Unproven("a number that is not zero")
    return _Part(node, broadcast(dims, value(node).shape), kept)


def _without(space: Space, total: Any, term: Any) -> Node | None:
    """What is added to a term."""
    if not (is_tensor(total) and is_tensor(term)):
        return None
    inputs = added_by(space.view, total)
    if space.view.op(total).inplace or inputs is None or len(inputs) != 2 or term not in inputs:
        return None
    return inputs[1 - inputs.index(term)]
