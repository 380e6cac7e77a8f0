"""In how many dimensions a region is computed."""

from __future__ import annotations

from collections.abc import Sequence

from fuser.graph.axes import Axis, Dim, Dims, leaves, resolve


def runs(axes: Sequence[Axis], operands: Sequence[Dims]) -> list[Dim]:
    """One dimension for each run of axes that every operand has, or lacks, as a whole."""
    have = [set(leaves(dims)) for dims in operands]
    found: list[Dim] = []
    before: list[bool] = []
    for axis in leaves((tuple(axes),)):
        read = [axis in known for known in have]
        if found and read == before:
            found[-1] = (*found[-1], axis)
        else:
            found.append((axis,))
        before = read
    return found


def cut(dims: Dims, operands: Sequence[Dims]) -> Dims:
    """The dimensions of a tensor, cut where an operand has a part of one alone."""
    return tuple(run for dim in resolve(dims) for run in runs(dim, operands) or [()])
