"""The frame that the kernels of an activation share: arguments, rows, columns, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...triton.emitter import Value
from ...triton.kernel import pointer
from ...triton.text import PointwiseText
from .config import Config
from .layout import Layout


@dataclass
class Text(PointwiseText):
    """One kernel that is being written."""

    layout: Layout
    config: Config

    def facts(self) -> list[str]:
        return facts(self.layout)

    @property
    def columns(self) -> str:
        """How many there are."""
        known = self.layout.columns
        return self.number("N") if known is None else str(known)

    @property
    def across(self) -> str:
        """Blocks of columns."""
        known, block = self.layout.columns, self.config.block_f
        return f"tl.cdiv({self.columns}, {block})" if known is None else str(-(-known // block))

    # -- places

    def block(self, *, shared: bool = False) -> None:
        """`f`, the columns of a program, and `turn`, its tile of rows; `shared`: the first of
        several, at a position of the leading dimensions."""
        write, block = self.write, self.config.block_f
        start = ""
        if self.across == "1":
            write("turn = tl.program_id(0)")
        else:
            write(f"piece = tl.program_id(0) % {self.across}")
            write(f"turn = tl.program_id(0) // {self.across}")
            start = f"{self.piece} * {block} + "
        if shared and self.layout.lead:
            write(f"lead = turn // {self.number('PROGRAMS')}")
            write("turn = turn % PROGRAMS")
            self.position("lead", 0, self.layout.lead)
        wide = ".to(tl.int64)" if self.layout.wide else ""
        write(f"f = {start}tl.arange(0, {block}){wide}")
        if self.masks_columns:
            write(f"in_f = f < {self.columns}")
        if self.layout.paired:
            start = start and f"{self.piece} * {2 * block} + "
            write(f"pair = {start}tl.arange(0, {2 * block}){wide}")

    @property
    def piece(self) -> str:
        """Which block of columns a program has."""
        if self.across == "1":
            return "0"
        return "piece.to(tl.int64)" if self.layout.wide else "piece"

    def rows(self, first: str) -> None:
        """`row` of a tile, `in_rows` where some may not be there, and the position of each."""
        m = self.config.block_m
        self.write(f"row = {first} + tl.arange(0, {m})")
        if self.masks_rows:
            self.write(f"in_rows = row < {self.number('ROWS')}")
        self.position("row", self.layout.lead, self.layout.rows)

    def position(self, index: str, first: int, last: int) -> None:
        """`p{dim}` for some dimensions, of an index that counts all of them."""
        for dim in reversed(range(first + 1, last)):
            size = self.number(f"D{dim}")
            self.write(f"p{dim} = ({index} % {size}).to(tl.int64)")
            self.write(f"{index}_{dim} = {index} // {size}")
            index = f"{index}_{dim}"
        if first < last:
            self.write(f"p{first} = {index}.to(tl.int64)")

    def place(self, name: str, dtype: torch.dtype) -> None:
        """`{name}_row`: where the rows of a tensor begin."""
        own = self.layout.of(name)[:-1]
        self.tensor(name, pointer(dtype))
        terms = [f"p{d} * {self.number(f'{name}_s{d}')}" for d, varies in enumerate(own) if varies]
        self.write(f"{name}_row = {' + '.join([name, *terms])}")

    @property
    def masks_rows(self) -> bool:
        return self.config.block_m > 1

    @property
    def masks_columns(self) -> bool:
        """Whether a tile may reach beyond the last column."""
        known = self.layout.columns
        return known is None or known % self.config.block_f != 0

    # -- tiles

    def mask(self, *, rows: bool = True, columns: bool = True) -> str:
        """What is there of something that varies along rows, columns or both."""
        found = ["in_rows[:, None]"] if rows and self.masks_rows else []
        found += ["in_f[None, :]"] if columns and self.masks_columns else []
        return " & ".join(found)

    def at(self, name: str, part: int = 0) -> str:
        """Pointers to a tile of a tensor, or of a part of it, one wide where it is broadcast."""
        layout = self.layout
        terms = [f"{name}_row{'[:, None]' if layout.along_rows(name) else ''}"]
        if part:
            terms.append(f"tl.full([], {part}, tl.int64) * {self.number(f'{name}_part')}")
        if layout.along_columns(name):
            terms.append(f"(f * {self.number(f'{name}_s{layout.rows}')})[None, :]")
        return " + ".join(terms)

    def load(self, name: str, dtype: torch.dtype, into: str, part: int = 0) -> Value:
        """A tile of a tensor, in the registers that hold its dtype."""
        layout = self.layout
        mask = self.mask(rows=layout.along_rows(name), columns=layout.along_columns(name))
        return self.load_at(self.at(name, part), mask, dtype, into)

    def operands(self, names: Sequence[str]) -> dict[str, Value]:
        """Tiles of inputs of the program."""
        named = self.layout.spec.named
        found: dict[str, Value] = {}
        for name in names:
            j, part = named[name]
            if name in found:
                continue
            if f"c{j}" in self.layout.paired:
                found |= self._pair(j)
            else:
                found[name] = self.load(f"c{j}", self.layout.dtypes[j], f"{name}_tile", part)
        return found

    def _pair(self, j: int) -> dict[str, Value]:
        """Tiles of both parts of an operand."""
        dtype, names = self.layout.dtypes[j], self.layout.spec.names(j)
        self.load_at(self._at_pair(f"c{j}"), self._mask_of_pair(f"c{j}"), dtype, f"c{j}_pair")
        tiles = ", ".join(f"{name}_tile" for name in names)
        rows = self.config.block_m if self.layout.along_rows(f"c{j}") else 1
        shape = f"[{rows}, {self.config.block_f}, 2]"
        self.write(f"{tiles} = tl.split(tl.reshape(c{j}_pair, {shape}))")
        return {name: Value(f"{name}_tile", dtype) for name in names}

    def store_pair(self, name: str, values: Sequence[Value]) -> None:
        """Tiles of both parts of a tensor that has all elements."""
        both = ", ".join(f"tl.broadcast_to({value.text}, {self.shape})" for value in values)
        shape = f"[{self.config.block_m}, {2 * self.config.block_f}]"
        pointers = self._at_pair(name)
        if not self.layout.along_rows(name):
            pointers += f" + tl.zeros({shape}, tl.int32)"
        self.store_at(pointers, self._mask_of_pair(name), f"tl.reshape(tl.join({both}), {shape})")

    def _at_pair(self, name: str) -> str:
        rows = "[:, None]" if self.layout.along_rows(name) else ""
        return f"{name}_row{rows} + pair[None, :]"

    def _mask_of_pair(self, name: str) -> str:
        found = ["in_rows[:, None]"] if self.layout.along_rows(name) and self.masks_rows else []
        found += [f"(pair < 2 * {self.columns})[None, :]"] if self.masks_columns else []
        return " & ".join(found)

    def store(self, name: str, value: Value, part: int = 0) -> None:
        """A tile of a tensor that has all elements."""
        self.store_at(self._broadcast(self.at(name, part), name), self.mask(), value.text)

    def _broadcast(self, pointers: str, name: str) -> str:
        """Pointers in the shape of a tile: dimensions of one element have no stride."""
        whole = self.layout.along_rows(name) and self.layout.along_columns(name)
        return pointers if whole else f"{pointers} + tl.zeros({self.shape}, tl.int32)"

    @property
    def shape(self) -> str:
        return f"[{self.config.block_m}, {self.config.block_f}]"

    def full(self, text: str) -> str:
        """An expression in the shape of a tile, zero beyond the ends."""
        mask = self.mask()
        text = f"tl.where({mask}, {text}, 0.0)" if mask else text
        return f"tl.broadcast_to({text}, {self.shape})"


def facts(layout: Layout) -> list[str]:
    """What a generated module computes, for its opening."""
    spec = layout.spec
    names = [*(f"r{d}" for d in range(layout.rows)), "f"]
    operands: list[str] = []
    for j, (dtype, parts) in enumerate(zip(layout.dtypes, spec.parts, strict=True)):
        own = layout.of(f"c{j}")
        dims = [n for n, varies in zip(names, own, strict=True) if varies]
        many = [str(parts)] if parts > 1 else []
        operands.append(f"c{j}: {dtype}, [{', '.join([*many, *dims])}]")
    return [f"y = {spec.program}", *operands, f"y: {spec.dtype}, [{', '.join(names)}]"]
