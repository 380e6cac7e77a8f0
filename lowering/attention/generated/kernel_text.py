"""The frame that all kernels of an attention share: arguments, header, loops over tiles."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from fuser.printed import first_line

from ...triton.kernel import pointer
from ...triton.source import Source
from .bounds import Loop, listed
from .layout import Layout, tensors
from .memory import chunks
from .tile import TileWriter

SIZES = ("B", "H", "HKV", "GROUP", "SQ", "SK")
"""Batch, query heads, key heads, query heads of a key head, queries, keys."""
TILE = ("BLOCK_M", "BLOCK_N")


@dataclass
class KernelText:
    """A kernel whose body is being written.

    Attributes:
        name: of the function.
        layout: what it is specialised on.
        extra: its own tensors: name, Triton type, suffixes of strides.
        scalars: its own numbers, with their types.
    """

    name: str
    layout: Layout
    about: str
    extra: tuple[tuple[str, str, str], ...]
    scalars: tuple[str, ...] = ()
    packed: bool = False
    keys_first: bool = False
    body: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        self.tile = TileWriter(
            self.body, self.layout, keys_first=self.keys_first, packed=self.packed
        )

    @property
    def signature(self) -> tuple[tuple[str, str], ...]:
        """Arguments and their Triton types, constants left out."""
        seed = [("seed", "*i64", "")] if self.layout.spec.dropout else []
        found = [*tensors(self.layout), *seed, *self.extra]
        strides = [(f"{n}_{s}", "i32") for n, _, suffixes in found for s in suffixes]
        numbers = [(n, "i32") for n in (*self.scalars, *SIZES)]
        return (*((n, t) for n, t, _ in found), *strides, *numbers)

    def text(self) -> str:
        """The whole function."""
        write = Source()
        write("@triton.jit")
        names = [n for n, _ in self.signature]
        constants = [f"{n}:tl.constexpr" for n in TILE]
        lines = textwrap.wrap(", ".join([*names, *constants]), 92, break_long_words=False)
        with write.block(f"def {self.name}("):
            for line in lines:
                write(line.rstrip(",").replace(":", ": ") + ",")
        with write.block("):"):
            write(f'"""{self.about}"""')
            for line in self.body.lines:
                write(line)
        return write.text

    # -- parts of bodies

    def heads_of_rows(self) -> None:
        """Positions of a program that owns a tile of queries; the last ones start first, as they
        see the most keys under a causal mask."""
        write = self.body
        write(f"blocks = tl.cdiv({'GROUP * SQ' if self.packed else 'SQ'}, BLOCK_M)")
        write("block = blocks - 1 - tl.program_id(0) % blocks")
        write("head = tl.program_id(0) // blocks")
        if self.packed:
            write("b = (head // HKV).to(tl.int64)")
            write("hk = (head % HKV).to(tl.int64)")
            write("row = block * BLOCK_M + tl.arange(0, BLOCK_M)")
            write("in_rows = row < GROUP * SQ")
            write("iq = row % SQ")
            write("h = hk * GROUP + (row // SQ).to(tl.int64)")
            write("iq64 = iq.to(tl.int64)")
        else:
            write("b = (head // H).to(tl.int64)")
            write("h = (head % H).to(tl.int64)")
            write("hk = h // GROUP")
            write("rows = tl.arange(0, BLOCK_M)")
            write("start_row = block * BLOCK_M")
            write("first_row = tl.cast(start_row, tl.int64)")
            write("iq = start_row + rows")
            if self.tile.in_rows:
                write("in_rows = iq < SQ")
        write("keys = tl.arange(0, BLOCK_N)")

    def store_rows(self, name: str, value: str) -> None:
        """One number for each query, (B, H, SQ)."""
        pointers = self.tile.queries(name).pointers(name)
        mask = f", mask={self.tile.in_rows}" if self.tile.in_rows else ""
        self.body(f"tl.store({pointers}, {value}{mask})")

    def start_statistics(self, *, sink: bool) -> None:
        """m, l and the sums of v before the first key."""
        if self.layout.spec.sink and sink:
            self.body(f"m = tl.zeros([BLOCK_M], tl.float32) + {self.tile.sink()}")
            self.body('l = tl.where(m == float("-inf"), 0.0, 1.0)')
        else:
            self.body('m = tl.full([BLOCK_M], float("-inf"), tl.float32)')
            self.body("l = tl.zeros([BLOCK_M], tl.float32)")
        for j, (_, size) in enumerate(chunks(self.layout.v.features)):
            self.body(f"acc_{j} = tl.zeros([BLOCK_M, {size}], tl.float32)")

    def inverse_sums(self) -> None:
        """What exponentials are multiplied with; a query without keys gives NaN, or zeros."""
        self.body("inverse = 1.0 / l")
        self.body("base = m")
        if self.layout.spec.dead_rows_are_zero:
            self.body("inverse = tl.where(l == 0.0, 0.0, inverse)")
            self.body('base = tl.where(m == float("-inf"), 0.0, m)')

    def finish(self, count: int, *, divided: bool = False) -> None:
        """Stores the result and the row statistics."""
        values = [f"acc_{j}" for j in range(count)]
        if not divided:
            self.inverse_sums()
            for value in values:
                self.body(f"{value} = {value} * inverse[:, None]")
        self.tile.store("out", self.layout.v, self.tile.queries("out"), self.tile.in_rows, values)
        self.store_rows("row_max", "m")
        self.store_rows("row_sum", "l")

    def listed_tiles(self, what: str) -> tuple[Loop, ...]:
        """Loops over the keys, or queries, that tile `block` of this program visits by a table."""
        for name, source in (("listed", "order"), ("many", "counts")):
            along = [f"{a} * {source}_{a}" for a in self.layout.visible_axes]
            self.body(f"{name} = {' + '.join([source, *along, f'block * {source}_t'])}")
        self.body("partial = tl.load(many)")
        self.body("visited = tl.load(many + 1)")
        return listed(self.layout, what)

    def loops_over_keys(self, loops: Iterable[Loop], body: Callable[[Loop], None]) -> None:
        """Tiles of keys: whole ones without a mask, those on an edge with it."""
        for loop in _edges(loops, self.layout.whole_keys):
            self.body(f"# {loop.about}")
            with self._loop("start_n", "BLOCK_N", loop):
                self.body("ik = start_n + keys")
                self.body("first_key = tl.cast(start_n, tl.int64)")
                body(loop)

    def loops_over_rows(self, loops: Iterable[Loop], body: Callable[[Loop], None]) -> None:
        """Tiles of queries of one head `h`."""
        for loop in _edges(loops, self.layout.whole_rows):
            self.body(f"# {loop.about}")
            with self._loop("start_m", "BLOCK_M", loop):
                self._rows_at()
                body(loop)

    def loops_over_heads(self, loops: Iterable[Loop], body: Callable[[Loop], None]) -> None:
        """Tiles of queries of all heads that share a key head, in one loop: two nested ones would
        hold a hundred registers more."""
        if not self.layout.grouped:
            self.body("h = hk")
            self.loops_over_rows(loops, body)
            return
        for loop in _edges(loops, self.layout.whole_rows):
            self.body(f"# {loop.about} of every head")
            size = f"{loop.end} - {loop.first}"
            self.body(f"count = {size if loop.listed else f'tl.cdiv({size}, BLOCK_M)'}")
            with self.body.block(f"for step in {self._range('0', 'GROUP * count')}:"):
                with self.tile.tile():
                    self.body("h = hk * GROUP + step // count")
                    if loop.listed:
                        at = f"listed + {loop.first} + step % count"
                        self.body(f"start_m = tl.load({at}) * BLOCK_M")
                    else:
                        self.body(f"start_m = {loop.first} + step % count * BLOCK_M")
                    self._rows_at()
                    body(loop)

    @contextmanager
    def _loop(self, start: str, block: str, loop: Loop) -> Generator[None]:
        """Over the first positions of tiles, which are counted or read from a list."""
        if loop.listed:
            with self.body.block(f"for at in {self._range(loop.first, loop.end)}:"):
                self.body(f"{start} = tl.load(listed + at) * {block}")
                with self.tile.tile():
                    yield
        else:
            with self.body.block(f"for {start} in {self._range(loop.first, loop.end, block)}:"):
                with self.tile.tile():
                    yield

    def _range(self, *bounds: str) -> str:
        layout = self.layout
        options = ["warp_specialize=True"] if layout.warp_specialize else []
        options += [] if layout.hoists else ["disable_licm=True"]
        return f"{'tl.' if options else ''}range({', '.join([*bounds, *options])})"

    def _rows_at(self) -> None:
        self.body("iq = start_m + rows")
        self.body("first_row = tl.cast(start_m, tl.int64)")


def _edges(loops: Iterable[Loop], whole: bool) -> list[Loop]:
    """The loops; where every tile is full, none has positions outside of the tensors."""
    return [replace(loop, edges=loop.edges and not whole) for loop in loops]


def header(layout: Layout, origin: str, functions: Iterable[str]) -> str:
    """The opening of a generated module: what it computes, for whom, and its imports."""
    spec = layout.spec
    write = Source()
    write(first_line(origin))
    write()
    write(f"score = {spec.score}")
    if spec.mask is not None:
        write(f"keep  = {spec.mask}")
    write(f"probs = {spec.probs}")
    for i in layout.products:
        write(f"q{i}: (B, H, SQ, {layout.q[i].features}) {layout.q[i].dtype}")
        write(f"k{i}: (B, HKV, SK, {layout.k[i].features}) {layout.k[i].dtype}")
    write(f"v: (B, HKV, SK, {layout.v.features}) {layout.v.dtype}")
    for i, c in enumerate(layout.captured):
        along = "table" if c.rank >= 0 else f"along {', '.join(c.axes) or 'nothing'}"
        write(f"c{i}: {along} {c.dtype}")
    if spec.sink:
        write(f"sink: {'a logit of zero' if spec.sink == '0' else spec.sink}")
    if spec.dropout:
        write(f"dropout: {spec.dropout:g}")
    write('"""')
    write()
    write("import triton")
    write("import triton.language as tl")
    used = sorted(functions)
    if spec.dropout or used:
        write()
    if spec.dropout:
        write("from fuser.lowering.attention.generated.device import dropped")
    if used:
        write(f"from fuser.lowering.triton.functions import {', '.join(used)}")
    return write.text.replace("torch.", "")


def lists_of_tiles(layout: Layout) -> tuple[tuple[str, str, str], ...]:
    """For every tile, the tiles that it visits, and how many of them: see `block_table`."""
    letters, whole = layout.visible_axes + "t", pointer(torch.int32)
    return (("order", whole, letters), ("counts", whole, letters))


def row_statistics() -> tuple[tuple[str, str, str], ...]:
    """The largest score of a query and its sum of exponentials, (B, H, SQ) in fp32."""
    fp32 = pointer(torch.float32)
    return (("row_max", fp32, "bhm"), ("row_sum", fp32, "bhm"))
