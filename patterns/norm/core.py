"""A tensor that was normalised, however that was written: what all of its spellings have in common.

    n = (x - mean) / sqrt(mean of (x - mean)² + eps)

`native` reads it from a function of torch's, `spelled` proves it of arithmetic, `region` grows what
is pointwise before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from fuser.graph.axes import (
    Axis,
    Dims,
    leaves,
    quotient,
    resolve,
    size_of,
    split_dim,
)
from fuser.graph.ops import value

from ..arranged import runs


@dataclass(frozen=True)
class Core:
    """What was found.

    Attributes:
        node: whose value is what was normalised, times `weight` plus `bias`.
        x: what was normalised, of the same shape.
        inner: which dimensions of x are normalised; where there are `groups`, of the second only
            the channels of a group.
        groups: how many groups the second dimension consists of; 0 where dimensions are whole.
        dtype: to which what was normalised is rounded.
        interior: nodes that are computed on the way, `node` among them.
        weight: a tensor along the last dimensions, or along the second where there are groups.
        bias: the same.
        native: it is what a kernel of torch's does, and rounded alike.
        factors: tensors of the shape of x, or that broadcast to it, and numbers, that it was
            multiplied with on the way.
        bare: nothing is normalised, and `node` is x, which stays outside.
    """

    node: Node
    x: Node
    inner: tuple[int, ...]
    eps: float
    dtype: torch.dtype
    interior: frozenset[Node]
    centred: bool = True
    summed: bool = False
    floor: bool = False
    groups: int = 0
    weight: Node | None = None
    bias: Node | None = None
    native: bool = True
    factors: tuple[Node | float, ...] = ()
    bare: bool = False

    @staticmethod
    def unchanged(x: Node) -> Core:
        """x as it is, with rows along its last dimension."""
        dtype, last = value(x).dtype, value(x).ndim - 1
        return Core(x, x, (last,), 0.0, dtype, frozenset(), False, native=False, bare=True)

    def split(self, dims: Dims) -> Space:
        """Which axes of a tensor with the shape of x are normalised.

        Raises:
            Unproven: the groups are not known to divide the channels.
        """
        if self.groups:
            each = quotient(size_of(leaves((dims[1],))), self.groups)
            groups, channels = split_dim(dims[1], (self.groups, each))
            return Space([*leaves((dims[0], groups))], [*leaves((channels, *dims[2:]))])
        outer = [a for i, dim in enumerate(dims) if i not in self.inner for a in leaves((dim,))]
        return Space(outer, [a for i in self.inner for a in leaves((dims[i],))])

    def along(self, dims: Dims, parameter: Node) -> Dims:
        """Axes of the weight or bias."""
        example = parameter.meta["example_value"]
        return (dims[1],) if self.groups else tuple(dims[len(dims) - example.ndim :])


@dataclass
class Space:
    """Axes in which a chain is computed, and among them those that are normalised."""

    outer: list[Axis] = field(default_factory=list)
    inner: list[Axis] = field(default_factory=list)

    def arranged(self, operands: Sequence[Dims], members: Sequence[Axis] = ()) -> tuple[Dims, int]:
        """One dimension for each run of axes that every operand has, or lacks, as a whole; and
        those of sections and of the members of pairs.

        Returns:
            The dimensions, and how many are normalised, those before the members.
        """
        outer, inner = (
            [run for part in _around(axes, members) for run in runs(part, operands)]
            for axes in (self.outer, self.inner)
        )
        inner = inner or [()]  # rows of one element
        return (*outer, *inner, *((axis,) for axis in members)), len(inner)


def _around(axes: Sequence[Axis], members: Sequence[Axis]) -> list[list[Axis]]:
    """Axes before those of sections and pairs, and after: what these stand between stays apart."""
    found = [list[Axis]()]
    for axis in axes:
        if axis in members:
            found.append([])
        else:
            found[-1].append(axis)
    return found


def resolved(space: Space) -> Space:
    """The same axes after some were split."""
    return Space(*(list(leaves(resolve((tuple(axes),)))) for axes in (space.outer, space.inner)))
