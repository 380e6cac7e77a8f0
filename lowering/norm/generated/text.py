"""The frame that the kernels of a norm share: arguments, header, rows, columns, tiles, programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from fuser.graph.program import Program

from ...triton.emitter import Emitter, Value
from ...triton.kernel import pointer
from ...triton.text import PointwiseText
from ...triton.trace import Input, trace
from .config import Config, Way
from .layout import Layout, result_dtype

FP32 = pointer(torch.float32)


@dataclass
class Text(PointwiseText):
    """One kernel that is being written.

    Attributes:
        by: how it reads rows.
    """

    layout: Layout
    config: Config
    by: Way
    _emitters: int = 0

    def facts(self) -> list[str]:
        return facts(self.layout)

    # -- sizes

    def size(self, dim: int) -> str:
        """Of a dimension of columns, counted from the first of those."""
        known = self.layout.inner[dim]
        return str(known) if known is not None else self.number(f"N{self.layout.outer + dim}")

    def many(self, axis: str) -> str:
        """Columns along an axis of tiles."""
        if axis == "f":
            return self.size(len(self.layout.inner) - 1)
        sizes = [self.size(d) for d in range(len(self.layout.inner) - 1)]
        if all(s.isdigit() for s in sizes):
            return str(prod(map(int, sizes)))
        return sizes[0] if len(sizes) == 1 else f"({' * '.join(sizes)})"

    @property
    def length(self) -> str:
        """Elements of a row."""
        sizes = [self.many(a) for a in self.layout.axes if a != "m"]
        if all(s.isdigit() for s in sizes):
            return str(prod(map(int, sizes)) * len(self.layout.spec.members))
        return self.number("LENGTH")

    # -- rows

    def rows(self, first: str) -> None:
        """`row` of a tile, `in_rows` where some may not be there, and the position of each."""
        write, m, layout = self.write, self.config.block_m, self.layout
        write(f"row = {first} + tl.arange(0, {m})")
        if self.masks_rows:
            write(f"in_rows = row < {self.number('ROWS')}")
        self.position("row", "p", range(layout.lead, layout.outer), "D")

    @property
    def masks_rows(self) -> bool:
        return self.config.block_m > 1

    def position(self, index: str, name: str, dims: Sequence[int], sizes: str) -> None:
        """`{name}{dim}` for each of some dimensions, of an index that counts all of them."""
        for dim in reversed(dims[1:]):
            size = self.number(f"{sizes}{dim}") if sizes == "D" else self.size(dim)
            self.write(f"{name}{dim} = ({index} % {size}).to(tl.int64)")
            self.write(f"{index}_{dim} = {index} // {size}")
            index = f"{index}_{dim}"
        if dims:
            self.write(f"{name}{dims[0]} = {index}.to(tl.int64)")

    def place(self, name: str, kind: str) -> None:
        """`{name}_row`: where the rows of a tensor begin."""
        own = self.layout.of(name)[: self.layout.outer]
        self.tensor(name, kind)
        terms = [f"p{d} * {self.number(f'{name}_{d}')}" for d, varies in enumerate(own) if varies]
        self.write(f"{name}_row = {' + '.join([name, *terms])}")

    def place_operands(self, names: Iterable[str]) -> None:
        for name in names:
            self.place(name, pointer(self.layout.dtype(name)))

    # -- columns

    def columns(self, piece: str = "") -> None:
        """`f`, and `u` where columns have two axes, of a whole row or of one piece of it."""
        write, config, layout = self.write, self.config, self.layout
        f, u = config.block_f, config.block_u
        wide = ".to(tl.int64)" if layout.wide else ""
        across = self.across("f")
        start_f = start_u = ""
        if piece and "u" in layout.axes:
            start_u = f"{piece} * {u} + " if across == "1" else f"{piece} // {across} * {u} + "
            start_f = "" if across == "1" else f"{piece} % {across} * {f} + "
        elif piece:
            start_f = f"{piece} * {f} + "
        write(f"f = {_wide(f'{start_f}tl.arange(0, {f})', wide)}")
        if self.masks("f"):
            write(f"in_f = f < {self.many('f')}")
        if "u" not in layout.axes:
            return
        write(f"u = {_wide(f'{start_u}tl.arange(0, {u})', wide)}")
        if self.masks("u"):
            write(f"in_u = u < {self.many('u')}")
        slow = range(len(layout.inner) - 1)
        if len(slow) > 1:
            self.position("u", "q", slow, "N")

    def across(self, axis: str) -> str:
        """How many blocks there are along an axis."""
        size, block = self.many(axis), self.config.block(axis)
        if size.isdigit():
            return str(-(-int(size) // block))
        return "across" if axis == "f" else f"tl.cdiv({size}, {block})"

    def pieces(self) -> None:
        """`pieces` of a row, each of which is a tile of columns."""
        if not self.many("f").isdigit():
            self.write(f"across = tl.cdiv({self.many('f')}, {self.config.block_f})")
        counts = [self.across(a) for a in self.layout.axes if a != "m"]
        self.write(f"pieces = {' * '.join(counts)}")

    def masks(self, axis: str) -> bool:
        """Whether a tile may reach beyond the end of an axis."""
        if axis == "m":
            return self.masks_rows
        size = self.many(axis)
        return not size.isdigit() or int(size) % self.config.block(axis) != 0

    # -- tiles

    @property
    def axes(self) -> str:
        return self.layout.axes

    def shape(self, axes: str | None = None) -> str:
        """Of a tile, or of what has some of its axes."""
        axes = self.axes if axes is None else axes
        return f"[{', '.join(str(self.config.block(a)) for a in axes)}]"

    def along(self, own: str, axes: str | None = None) -> str:
        """The subscript that gives what has some axes, in order, all of them."""
        axes = self.axes if axes is None else axes
        if len(axes) == 1:
            return ""
        return f"[{', '.join(':' if a in own else 'None' for a in axes)}]"

    def mask(self, own: str | None = None, axes: str | None = None) -> str:
        """What is there along the axes `own` of something that has `axes`; empty where all is."""
        names = {"m": "in_rows", "u": "in_u", "f": "in_f"}
        axes = self.axes if axes is None else axes
        own = axes if own is None else own
        return " & ".join(f"{names[a]}{self.along(a, axes)}" for a in own if self.masks(a))

    def at(self, name: str) -> str:
        """Pointers to a tile of a tensor, one wide along axes that it does not have."""
        layout = self.layout
        own, outer = layout.of(name), layout.outer
        axes, last = layout.tile_axes(name), len(own) - 1
        terms = [f"{name}_row{self.along('m') if 'm' in axes else ''}"]
        for dim in range(outer, last):
            if own[dim]:
                index = "u" if last - outer == 1 else f"q{dim - outer}"
                step = f"({index} * {self.number(f'{name}_{dim}')})"
                terms.append(f"{step}{self.along('u')}")
        if own[last]:
            terms.append(f"(f * {self.number(f'{name}_{last}')}){self.along('f')}")
        return " + ".join(terms)

    def load(self, name: str, dtype: torch.dtype, into: str) -> Value:
        """A tile of a tensor, in the registers that hold its dtype."""
        return self.load_at(self.at(name), self.mask(self.layout.tile_axes(name)), dtype, into)

    def store(self, name: str, value: Value, axes: str | None = None) -> None:
        """A tile of a tensor that has all axes, or of one that has some and is one wide along
        others."""
        shape = [self.config.block(a) if a in (axes or self.axes) else 1 for a in self.axes]
        one = "" if self.layout.tile_axes(name) else f" + tl.zeros({shape}, tl.int32)"
        self.store_at(f"{self.at(name)}{one}", self.mask(axes), value.text)

    def full(self, text: str, *, masked: bool = True) -> str:
        """An expression in the shape of a tile; zero beyond the ends where it is `masked`."""
        mask = self.mask() if masked else ""
        text = f"tl.where({mask}, {text}, 0.0)" if mask else text
        return f"tl.broadcast_to({text}, {self.shape()})"

    def total(self, text: str, keep: str) -> str:
        """An expression that has all axes, added up over those that are not kept."""
        for position in reversed(range(len(self.axes))):
            if self.axes[position] not in keep:
                text = f"tl.sum({text}, {position})"
        return text

    @property
    def groups(self) -> str:
        """Axes along which there are different largest numbers."""
        return self.axes.replace("f", "") if self.layout.spec.groups else "m"

    def largest(self, text: str) -> str:
        """The largest number of each row or group, of an expression that has all axes; NaN where
        one is."""
        mask = self.mask()
        text = f"tl.where({mask}, {text}, float('-inf'))" if mask else text
        self.write(f"each = tl.broadcast_to({text}, {self.shape()})")
        largest = "tl.where(each != each, float('-inf'), each)"
        no_number = "(each != each).to(tl.int32)"
        for position in reversed(range(len(self.axes))):
            if self.axes[position] not in self.groups:
                largest = f"tl.max({largest}, {position})"
                no_number = f"tl.max({no_number}, {position})"
        return f"tl.where({no_number} > 0, float('nan'), {largest})"

    # -- programs

    def emitter(self) -> Emitter:
        self._emitters += 1
        return Emitter(self.write, f"{'xyzvw'[self._emitters - 1]}")

    def inputs(self, program: Program) -> dict[str, Input]:
        return {name: Input(self.layout.dtype(name)) for name in program.inputs}

    def operands(self, names: Iterable[str]) -> dict[str, Value]:
        """Loads tiles of operands."""
        return {name: self.load(name, self.layout.dtype(name), f"{name}_tile") for name in names}

    def result_dtype(self, program: Program) -> torch.dtype:
        return result_dtype(program, self.layout.dtype)

    def run(self, emitter: Emitter, program: Program, values: dict[str, Value]) -> Value:
        (value,) = emitter.run(trace(program, self.inputs(program)), values)
        return emitter.tensor(value)


def _wide(text: str, cast: str) -> str:
    return f"({text}){cast}" if cast else text


def _over(layout: Layout) -> str:
    return f" over s{len(layout.inner) - 1}" if layout.spec.groups else ""


def facts(layout: Layout) -> list[str]:
    """What a generated module computes, for its opening."""
    spec = layout.spec
    moment = "variance" if spec.centred else "squares"
    moment = f"{'sum' if spec.summed else 'mean'} of squares" if not spec.centred else moment
    root = f"root of the {moment}, at least {spec.eps:g}" if spec.floor else (
        f"root of the {moment} + {spec.eps:g}"
    )  # fmt: skip
    names = [f"r{i}" for i in range(layout.outer)] + [f"s{i}" for i in range(len(layout.inner))]
    operands = [
        f"{c}: {layout.dtype(c)}, "
        f"[{', '.join(n for n, varies in zip(names, layout.of(c), strict=True) if varies)}]"
        for c in layout.operands
    ]
    kept = f", x: {spec.kept}" if spec.kept else ""
    what = f"x{' less its mean' if spec.centred else ''} over the {root}"
    results = [f"y_{i}{m}" for i in range(len(spec.dtypes)) for m in spec.members]
    return [
        f"x = {spec.before}",
        *([] if spec.peak is None else [f"p = max {spec.peak}{_over(layout)}"]),
        *(f"{name} = {program}" for name, program in zip(results, spec.after, strict=True)),
        f"n: {'x' if spec.bare else what}",
        *operands,
        f"n: {spec.norm_dtype}, y: {', '.join(map(str, spec.dtypes))}{kept}; "
        f"rows [{', '.join(names[: layout.outer])}]",
    ]
