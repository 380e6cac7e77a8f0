"""Rows of all experts, of which those of the chosen ones are taken.

rows.gather(1, indices[..., None].expand(-1, -1, D))    take_along_dim(rows, indices[..., None], 1)
rows[arange(T)[:, None], indices]                       rows[indices[:, k], arange(T)]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, broadcast, fresh, leaves, resolve, same_size, size_of
from fuser.graph.index import full_index
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.torch_private import to_expr

from .arange import is_arange
from .choices import reads_as_told
from .space import Place, Space, require
from .weights import unchanged

_ALONG = ("gather", "take_along_dim")


@dataclass(frozen=True)
class Taken:
    """What each row is taken from.

    Attributes:
        source, dims: rows of all experts.
        experts: their axis.
        indices: which expert's row is taken.
    """

    source: Node
    dims: Dims
    experts: Dim
    indices: Place


def taken(space: Space, node: Node, dims: Dims) -> Taken | None:
    """What rows are taken from; None where nothing is.

    Raises:
        Declined: it is something else than rows of experts.
    """
    op = space.view.op(node)
    if op.name in _ALONG:
        return _bare(space, _gathered(space, op, node, dims))
    if op.kind is not Kind.SLICE or op.name != "getitem":
        return None
    found = _indexed(space, op, dims)
    return None if found is None else _bare(space, found)


def _bare(space: Space, found: Taken) -> Taken:
    """The same without views, so that two of them are of one tensor."""
    node, dims = found.source, found.dims
    while not space.view.is_written(node):
        step = unchanged(space, node, dims)
        if step is None:
            break
        space.interior.add(node)
        node, dims = step
    return replace(found, source=node, dims=resolve(dims))


def _gathered(space: Space, op: Op, node: Node, dims: Dims) -> Taken:
    """`gather(rows of all experts, indices)`."""
    dim, index, source = op.args["dim"], op.args["index"], op.args["input"]
    require(isinstance(dim, int), "rows are gathered along a dimension that is no constant", node)
    told = reads_as_told(space.view, op)
    require(told, "take_along_dim may count on from the first expert beyond the last", node)
    at = dim % len(dims)
    along = set(leaves(dims[at : at + 1]))
    require(along == space.chosen_axes, "rows are gathered along another axis", node)
    place = space.locate(index, broadcast(dims, value(index).shape))
    require(set(leaves(place.dims)) == space.row_axes, "indices differ between features", node)
    for i, (own, other) in enumerate(zip(value(source).shape, value(index).shape, strict=True)):
        same = own == other or (op.name == "take_along_dim" and other == 1)
        require(i == at or same, "a part of the rows is gathered", node)
    experts = fresh(value(source).shape[at : at + 1], "e")[0]
    return Taken(source, (*dims[:at], experts, *dims[at + 1 :]), experts, place)


def _indexed(space: Space, op: Op, dims: Dims) -> Taken | None:
    """`rows[..., indices, ...]` with the position of the token for all other dimensions of it."""
    source = op.args["input"]
    parts = full_index(op.args["index"], value(source).ndim)
    at = [i for i, part in enumerate(parts) if is_tensor(part)]
    plain = all(is_tensor(part) or part == slice(None) for part in parts)
    whole = all(value(parts[i]).dtype is torch.int64 for i in at)
    if len(at) < 2 or not plain or not whole or len(parts) != value(source).ndim:
        return None
    new = max(value(parts[i]).ndim for i in at)
    start = at[0] if at[-1] - at[0] == len(at) - 1 else 0
    if len(dims) != len(parts) - len(at) + new:
        return None
    rows, rest = dims[start : start + new], [*dims[:start], *dims[start + new :]]
    made: list[Dim] = []
    found: tuple[Dim, Place] | None = None
    for part, size in zip(parts, value(source).shape, strict=True):
        if not is_tensor(part):
            made.append(rest.pop(0))
            continue
        own = broadcast(rows, value(part).shape)
        if _is_position(space, part, own, size):
            made.append(leaves(own))
        elif found is None:
            found = fresh((size,), "e")[0], space.locate(part, own)
            made.append(found[0])
        else:
            return None
    if found is None or set(leaves(found[1].dims)) != space.row_axes:
        return None
    return Taken(source, tuple(made), *found)


def _is_position(space: Space, part: Node, dims: Dims, size: Any) -> bool:
    """Whether an index is the position of the token along some of its axes."""
    own = leaves(dims)
    of_tokens = bool(own) and set(own) <= space.token_axes
    return (
        of_tokens
        and same_size(size_of(own), to_expr(size))
        and is_arange(space.view, part, dims, own)
    )
