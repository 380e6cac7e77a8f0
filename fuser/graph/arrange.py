"""Bring a tensor with known axes into a wanted arrangement, with as few views as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .axes import Axis, Dims, Size, Unproven, leaves, resolve, same_size, size_of


@dataclass(frozen=True)
class Reshape:
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Permute:
    order: tuple[int, ...]


@dataclass(frozen=True)
class Expand:
    shape: tuple[Size, ...]


@dataclass(frozen=True)
class Select:
    dim: int
    index: int


Step: TypeAlias = "Reshape | Permute | Expand | Select"


def steps(
    dims: Dims,
    target: Dims,
    *,
    materialise: bool = False,
    fixed: Mapping[Axis, int] | None = None,
) -> list[Step]:
    """Views that turn a tensor with `dims` into one with `target`.

    At an axis in `fixed` only the given index is taken. Axes of `target` that the tensor lacks are
    broadcast: a dimension all of whose axes are missing gets size one, unless `materialise` asks
    for its full size.

    Raises:
        Unproven: the tensor has an axis that the target does not have.
    """
    dims, target = resolve(dims), resolve(target)
    out: list[Step] = []
    if fixed:
        dims = _take(dims, fixed, out)
    have, want = leaves(dims), leaves(target)
    if set(have) - set(want) or len(set(have)) != len(have):
        raise Unproven("a tensor has an axis that its place does not have")
    wanted = _full(dims, target, have, materialise)
    if dims == wanted:
        return out
    shape = [size_of(d) for d in dims]
    flat = [axis.size for axis in have]
    order = [a for a in want if a in have]
    if order != list(have) and shape != flat:
        out.append(Reshape(tuple(flat)))
        shape = flat
    if order != list(have):
        if shape != flat:
            raise Unproven("an arrangement that cannot be made")
        out.append(Permute(tuple(have.index(a) for a in order)))
        shape = [a.size for a in order]
    out.extend(_grow(shape, order, target, wanted))
    return out


def _take(dims: Dims, fixed: Mapping[Axis, int], out: list[Step]) -> Dims:
    """Open every dimension that holds a fixed axis, and select."""
    if not set(leaves(dims)) & set(fixed):
        return dims
    opened = tuple((axis,) for axis in leaves(dims))
    if opened != dims:
        out.append(Reshape(tuple(axis.size for (axis,) in opened)))
    remaining = list(opened)
    for axis, index in fixed.items():
        if (axis,) in remaining:
            position = remaining.index((axis,))
            out.append(Select(position, index))
            del remaining[position]
    return tuple(remaining)


def _full(dims: Dims, target: Dims, have: Sequence[Axis], materialise: bool) -> Dims:
    return tuple(d if materialise or set(d) & set(have) else () for d in target)


def _grow(shape: list[Size], order: Sequence[Axis], target: Dims, wanted: Dims) -> list[Step]:
    """Insert dimensions for missing axes, expand where one is part of a larger dimension, merge."""
    out: list[Step] = []
    final = [size_of(d) for d in wanted]
    missing = [a for d in wanted for a in d if a not in order]
    if missing:
        atoms = [a for d in wanted for a in (d or (None,))]
        opened: list[Size] = [a.size if a in order else 1 for a in atoms]  # type: ignore[union-attr]
        full: list[Size] = [1 if a is None else a.size for a in atoms]
        if not _same(shape, opened):
            out.append(Reshape(tuple(opened)))
        out.append(Expand(tuple(full)))
        shape = full
    if not _same(shape, final):
        out.append(Reshape(tuple(final)))
    return out


def _same(a: Sequence[Size], b: Sequence[Size]) -> bool:
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))
