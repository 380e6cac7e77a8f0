"""What the kernels of a norm are specialised on, and which norms have some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuser.graph.program import Program
from fuser.specs import NormSpec
from fuser.specs.norm import operand_of
from fuser.torch_private import known_true

from ...triton.space import Space
from ...triton.trace import Input, trace

LARGEST = 2**31
"""Positions within a row that are below it are counted in 32 bits."""


@dataclass(frozen=True)
class Layout:
    """Everything that the text of the kernels depends on.

    Attributes:
        dtypes: of the operands, by their numbers.
        lead, rest: how many dimensions of rows there are; each program has one position of the
            former.
        inner: sizes of dimensions of columns, None where they are arguments; the last one is the
            fastest in memory.
        varies: along which of all dimensions a tensor has more than one element, by its name; the
            members of pairs are tensors of their own.
        between: tiles have their rows between the slow and the fast columns.
        wide: positions in a row are counted in 64 bits.
    """

    spec: NormSpec
    dtypes: tuple[torch.dtype, ...]
    lead: int
    rest: int
    inner: tuple[int | None, ...]
    varies: tuple[tuple[str, tuple[bool, ...]], ...]
    between: bool
    wide: bool

    @property
    def outer(self) -> int:
        """Dimensions of rows."""
        return self.lead + self.rest

    @property
    def itemsize(self) -> int:
        """Bytes of an element, of the widest operand that has all columns."""
        whole = [self.dtype(n).itemsize for n in self.operands if self.whole_columns(n)]
        return min(8, max(whole, default=4))

    @property
    def operands(self) -> list[str]:
        """Names of all that there are: `c0`, or `c0a` and `c0b`."""
        return [name for name, _ in self.varies if name.startswith("c")]

    def dtype(self, name: str) -> torch.dtype:
        """Of what is called so in a program."""
        if name.startswith("n"):
            return self.spec.norm_dtype
        if name == "p":
            assert self.spec.peak is not None
            return result_dtype(self.spec.peak, self.dtype)
        return self.dtypes[operand_of(name)]

    def own(self, name: str, member: str) -> str:
        """The tensor that has an operand's elements of one member of pairs."""
        names = (name + member, name + self.spec.own(member))
        return next((own for own in names if own in self.operands), name)

    @property
    def read_before(self) -> list[str]:
        """Operands of the program before the norm."""
        spec = self.spec
        return sorted({self.own(n, m) for n in spec.before.inputs for m in spec.members})

    @property
    def read(self) -> list[str]:
        """Operands of all programs."""
        after = {n for p in (*self.spec.after, self.spec.peak) if p for n in p.inputs}
        after = {n for n in after if n.startswith("c")}
        return sorted({*self.read_before, *after})

    @property
    def axes(self) -> str:
        """Of a tile, in order: rows `m`, slow columns `u` if there are any, fast ones `f`."""
        if len(self.inner) == 1:
            return "mf"
        return "umf" if self.between else "muf"

    def of(self, name: str) -> tuple[bool, ...]:
        """Along which dimensions a tensor varies."""
        return dict(self.varies)[name]

    def tile_axes(self, name: str) -> str:
        """Along which axes of a tile a tensor varies."""
        varies = self.of(name)
        own = {
            "m": any(varies[self.lead : self.outer]),
            "u": any(varies[self.outer : -1]),
            "f": varies[-1],
        }
        return "".join(a for a in self.axes if own[a])

    def whole_rows(self, name: str) -> bool:
        """Whether a tensor varies along all dimensions of rows."""
        return all(self.of(name)[: self.outer])

    def whole_columns(self, name: str) -> bool:
        """Whether a tensor varies along all dimensions of columns."""
        own = zip(self.of(name)[self.outer :], self.inner, strict=True)
        return all(varies or size == 1 for varies, size in own)

    def whole(self, name: str) -> bool:
        return self.whole_rows(name) and self.whole_columns(name)


def result_dtype(program: Program, dtype_of: Callable[[str], torch.dtype]) -> torch.dtype:
    """Of what a program computes, from dtypes by names of its inputs."""
    graph = trace(program, {name: Input(dtype_of(name)) for name in program.inputs})
    return next(n for n in graph.nodes if n.op == "output").args[0].meta["val"].dtype


def layout_of(spec: NormSpec, dtypes: Mapping[str, torch.dtype], space: Space) -> Layout:
    """The layout of a norm whose tensors are arranged as `space` says."""
    inner = tuple(s if isinstance(s, int) else None for s in space.inner)
    return Layout(
        spec,
        tuple({operand_of(n): d for n, d in dtypes.items() if n.startswith("c")}.values()),
        len(space.lead),
        len(space.rest),
        inner,
        tuple((name, space.varies(name)) for name in space.strides),
        space.between,
        not all(_is_near(own, space) for own in space.strides.values()),
    )


def _is_near(strides: tuple[Any, ...], space: Space) -> bool:
    """Whether a position in a row is known to be less than 2³¹ elements from its beginning."""
    reach: Any = 0
    columns = strides[len(strides) - len(space.inner) :]
    for size, stride in zip(space.inner, columns, strict=True):
        reach = reach + (0 if stride is None else size * stride)
    return known_true(reach < LARGEST)
