"""Axes: which logical index every dimension of a tensor stands for.

A dimension is a row-major product of axes; `()` is a dimension of size one. Walking *up* a graph
from a tensor whose axes are known, `view` and `broadcast` say which axes the inputs have. A
reshape that cuts through a dimension splits its axis, and everybody who holds the axis sees the
parts from then on. Two dimensions are the same index exactly when they resolve to the same axes;
sizes are never compared to decide that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import sympy
import torch

from ..torch_private import to_expr

Size: TypeAlias = "int | sympy.Expr"


class Unproven(Exception):
    """A fact that a proof needed could not be established; the message says which."""


@dataclass(eq=False)
class Axis:
    """One index, or, once split, the row-major product of its parts (outermost first)."""

    size: Size
    hint: str = ""
    parts: tuple[Axis, ...] = field(default=(), repr=False)

    def resolve(self) -> tuple[Axis, ...]:
        if not self.parts:
            return (self,)
        return tuple(leaf for part in self.parts for leaf in part.resolve())

    def split(self, *sizes: Size) -> tuple[Axis, ...]:
        self.parts = tuple(Axis(s, f"{self.hint}{i}") for i, s in enumerate(sizes))
        return self.parts


Dim: TypeAlias = tuple[Axis, ...]
Dims: TypeAlias = tuple[Dim, ...]


def resolve(dims: Sequence[Sequence[Axis]]) -> Dims:
    """The same dimensions with every split axis replaced by its parts."""
    return tuple(tuple(leaf for axis in dim for leaf in axis.resolve()) for dim in dims)


def renamed(dims: Sequence[Sequence[Axis]], names: Mapping[Axis, Axis]) -> Dims:
    """The same dimensions with other axes for some."""
    return tuple(tuple(names.get(axis, axis) for axis in dim) for dim in resolve(dims))


def leaves(dims: Sequence[Sequence[Axis]]) -> Dim:
    """All axes of a tensor, outermost first."""
    return tuple(leaf for dim in resolve(dims) for leaf in dim)


def fresh(shape: Iterable[int | torch.SymInt], hint: str = "") -> Dims:
    """New axes for a tensor of this shape, one a dimension."""
    sizes = [to_expr(s) for s in shape]
    return tuple(() if _is(s, 1) else (Axis(s, f"{hint}{i}"),) for i, s in enumerate(sizes))


def size_of(axes: Iterable[Axis]) -> Size:
    total: Size = 1
    for axis in axes:
        total = total * axis.size
    return total


def broadcast(dims: Sequence[Dim], shape: Sequence[int | torch.SymInt]) -> Dims:
    """Axes of an input of this shape that is broadcast to a tensor with these axes."""
    if len(shape) > len(dims):
        raise Unproven("an operand has more dimensions than the result")
    aligned = resolve(dims)[len(dims) - len(shape) :]
    out: list[Dim] = []
    for dim, size in zip(aligned, shape, strict=True):
        size = to_expr(size)
        if _is(size, 1):
            out.append(())
        elif same_size(size_of(dim), size):
            out.append(dim)
        else:
            raise Unproven(f"a size of {size} is not known to equal {size_of(dim)}")
    return tuple(out)


def regroup(dims: Sequence[Dim], shape: Sequence[Size | torch.SymInt]) -> Dims:
    """Axes of the input of a reshape whose result has `dims`; splits axes where it must."""
    queue = list(leaves(dims))
    out: list[Dim] = []
    for raw in shape:
        size = to_expr(raw)
        taken: list[Axis] = []
        while not same_size(have := size_of(taken), size):
            if not queue:
                raise Unproven("a reshape whose sizes do not add up")
            axis = queue.pop(0)
            rest = _quotient(size, have)
            if rest is not None and _quotient(rest, axis.size) is not None:
                taken.append(axis)
                continue
            inner = None if rest is None else _quotient(axis.size, rest)
            if rest is None or inner is None:
                raise Unproven("a reshape mixes two axes")
            head, tail = axis.split(rest, inner)
            taken.append(head)
            queue.insert(0, tail)
        out.append(tuple(taken))
    if queue:
        raise Unproven("a reshape whose sizes do not add up")
    return tuple(out)


def split_dim(dim: Sequence[Axis], sizes: Sequence[Size]) -> Dims:
    """Cut one dimension into consecutive ones of the given sizes."""
    return regroup((tuple(dim),), sizes)


def same_size(a: Size, b: Size) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return sympy.expand(a - b) == 0


def _is(a: Size, value: int) -> bool:
    return isinstance(a, int) and a == value


def _quotient(a: Size, b: Size) -> Size | None:
    """a / b where b certainly divides a."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if ratio.as_numer_denom()[1] != 1:
        return None
    return int(ratio) if ratio.is_Integer else ratio


def quotient(a: Size, b: Size) -> Size:
    """a / b.

    Raises:
        Unproven: b is not known to divide a.
    """
    found = _quotient(a, b)
    if found is None:
        raise Unproven(f"{b} is not known to divide {a}")
    return found
