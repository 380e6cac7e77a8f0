"""The frame that the kernels of a mixture share: arguments, header, places of rows, tiles."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from fuser.graph.program import Program

from ...triton.emitter import Emitter, Value
from ...triton.frame import Argument, assembled, opening
from ...triton.kernel import Kernel, pointer
from ...triton.source import Source
from ...triton.trace import Input, trace, trace_gradient
from .config import Config
from .layout import Column, Layout

I32, FP32 = pointer(torch.int32), pointer(torch.float32)


@dataclass
class Text:
    """One kernel that is being written.

    Attributes:
        stage: what it is for, which is its name too.
        about: its docstring.
        layout: what it is specialised on.
        config: how it is cut.
        arguments: its tensors, in order.
        numbers: its 32-bit integers.
        functions: names of device functions that the text calls.
    """

    stage: str
    about: str
    layout: Layout
    config: Config
    arguments: Sequence[Argument]
    numbers: Sequence[str] = ()
    write: Source = field(default_factory=Source)
    functions: set[str] = field(default_factory=set[str])
    described: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """Products whose matrices are loaded through a descriptor, with rows and columns of a tile."""

    def kernel(self, origin: str) -> Kernel:
        """The finished kernel."""
        return assembled(
            f"{self.stage}_kernel",
            self.about,
            opening(origin, facts(self.layout), self.functions),
            self.arguments,
            self.numbers,
            self.write.lines,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    # -- where a program is

    @contextmanager
    def tiles_of_experts(self, columns: int) -> Generator[None]:
        """Within the block a program has a tile: rows of one `expert` (`row`, `in_rows`, `choice`
        and `token`), and columns (`first_column`, `column`), the `share`-th ones.

        Tiles of rows are counted expert by expert. A program goes from one to another, or has one,
        and ends at once where that is not there.
        """
        write, config = self.write, self.config
        across, group = -(-columns // config.block_n), config.group
        self.count_tiles()
        if config.persistent:
            everything = f"tl.program_id(0), tiles * {across}, tl.num_programs(0)"
            with write.block(f"for number in range({everything}):"):
                write(f"strip = number // {group * across}")
                write(f"high = tl.minimum(tiles - strip * {group}, {group})")
                self._own("number", across, "high")
                yield
            return
        write(f"strip = tl.program_id(0) // {group * across}")
        self._own("tl.program_id(0)", across, str(group))
        yield

    def _own(self, number: str, across: int, high: str) -> None:
        """The rows and columns of a tile by its number; a strip has `high` tiles of rows."""
        write, config = self.write, self.config
        write(f"within = {number} % {config.group * across}")
        write(f"tile = strip * {config.group} + within % {high}")
        if not config.persistent:
            with write.block("if tile >= tiles:"):
                write("return")
        self.find_expert()
        write(f"row = start + (tile - before) * {config.block_m} + tl.arange(0, {config.block_m})")
        write("in_rows = row < end")
        write(f"share = within // {high}")
        write(f"first_column = share * {config.block_n}")
        write(f"column = first_column + tl.arange(0, {config.block_n})")
        self.choices()

    def count_tiles(self) -> None:
        """Tiles of rows: by expert the `last` one, and how many `tiles` there are."""
        write, count = self.write, self.layout.spec.experts
        width = power_of_two(count)
        there = f", mask=experts < {count}, other=0" if width > count else ""
        write(f"experts = tl.arange(0, {width})")
        write(f"first = tl.load(starts + experts{there})")
        write(f"own = tl.load(starts + experts + 1{there}) - first")
        block = self.config.block_m
        write(f"last = tl.cumsum((own + {block - 1}) // {block}, 0)")
        write("tiles = tl.max(last, 0)")

    def find_expert(self) -> None:
        """`expert` of a `tile`, `start` and `end` of its places, and the tiles `before` it."""
        write, count = self.write, self.layout.spec.experts
        write(f"expert = tl.minimum(tl.sum((last <= tile).to(tl.int32), 0), {count - 1})")
        write("before = tl.max(tl.where(last <= tile, last, 0), 0)")
        write("start = tl.load(starts + expert)")
        write("end = tl.load(starts + expert + 1)")

    def choices(self) -> None:
        """`choice` and `token` of each row; those beyond the last one stand for the first token."""
        write = self.write
        if self.layout.spec.runs:
            write("choice = tl.where(in_rows, row, 0)")
        else:
            write("choice = tl.load(order + row, mask=in_rows, other=0)")
        write("token = (choice // K).to(tl.int64)")
        write("row64 = row.to(tl.int64)")

    def matrix(self, name: str) -> None:
        """`name`: a pointer to the matrix, or what is added, of this program's expert."""
        spec, write = self.layout.spec, self.write
        if not spec.separate:
            write(f"{name}_own = {name} + expert.to(tl.int64) * {name}_e")
            return
        write(f"{name}_own = {name}_0")
        for e in range(1, spec.experts):
            write(f"{name}_own = tl.where(expert == {e}, {name}_{e}, {name}_own)")

    # -- tiles

    def describe(self, product: int, rows: int, columns: int) -> None:
        """A descriptor for tiles of a product's matrices, where there is to be one.

        Beyond the last row and column it gives zeros.

        Args:
            product: whose.
            rows, columns: of a tile.
        """
        layout = self.layout
        if not self.config.tma or layout.spec.separate or not layout.along[product]:
            return
        self.described[product] = rows, columns
        name, (a, b) = f"m{product}", self._memory_order(product)
        size = {"o": layout.sizes[product], "i": layout.inner(product)}
        tile = {"o": rows, "i": columns}
        shape = f"[{layout.spec.experts}, {size[a]}, {size[b]}]"
        self.write(f"{name}_tiles = tl.make_tensor_descriptor(")
        self.write(f"    {name}, {shape}, [{name}_e, {name}_{a}, 1], [1, {tile[a]}, {tile[b]}]")
        self.write(")")

    def described_tile(self, product: int, row: str, column: str, axes: str) -> str:
        """An expression for a tile of a product's matrix, as an operand.

        Args:
            product: whose; it is `described`.
            row, column: its first ones.
            axes: of the tile, `oi` or `io`.
        """
        order = self._memory_order(product)
        first = dict(zip("oi", (row, column), strict=True))
        size = dict(zip("oi", self.described[product], strict=True))
        (a, b), matrices = order, f"m{product}_tiles"
        tile = f"{matrices}.load([expert, {first[a]}, {first[b]}]).reshape([{size[a]}, {size[b]}])"
        tile = tile if order == axes else f"tl.trans({tile})"
        return self.operand(tile, self.layout.matrices[product])

    def is_described(self, column: Column) -> bool:
        """Whether rows of a first matrix are loaded through a descriptor: those of a described one
        that are beside each other, from where a descriptor may begin."""
        aligned = column.start * self.layout.matrices[column.product].itemsize % 16 == 0
        return column.product in self.described and column.step == 1 and aligned

    def _memory_order(self, product: int) -> str:
        return "oi" if self.layout.along[product] == "i" else "io"

    def operand(self, text: str, dtype: torch.dtype) -> str:
        """A tile that was loaded, or computed in fp32, as an operand of a product."""
        target = self.layout.dtype
        if self.layout.interpreted and target is torch.bfloat16:  # whose products take it for ints
            return f"{text}.to(tl.float32)" if dtype is target else self._nearest(text)
        return text if dtype is target else f"{text}.to(tl.{_name(target)})"

    def load(self, at: str, dtype: torch.dtype, masks: Iterable[str | None] = ()) -> str:
        """An expression for an operand of a product in memory."""
        kept = [m for m in masks if m]
        mask = f", mask={' & '.join(kept)}, other=0.0" if kept else ""
        return self.operand(f"tl.load({at}{mask})", dtype)

    def dot(self, a: str, b: str, into: str) -> None:
        """Adds a product of tiles to an fp32 one."""
        precision = self.layout.precision
        options = f', input_precision="{precision}"' if self.layout.dtype is torch.float32 else ""
        self.write(f"{into} = tl.dot({a}, {b}, {into}{options})")

    def stored(self, text: str, dtype: torch.dtype) -> str:
        """An fp32 tile on its way to memory."""
        interpreted = self.layout.interpreted and dtype is torch.bfloat16
        return self._nearest(text) if interpreted else text

    def _nearest(self, text: str) -> str:
        self.functions.add("bfloat16")
        return f"bfloat16({text})"

    def zeros(self, name: str, rows: int, columns: int) -> None:
        self.write(f"{name} = tl.zeros([{rows}, {columns}], tl.float32)")

    def weight(self) -> None:
        """`weight` of each row, in fp32; zero for rows that are not there, whose gradients are zero
        too and would be NaN beside a weight that is."""
        at = "weights + token * weights_t + (choice % K) * weights_k"
        self.write(f"weight = tl.load({at}, mask=in_rows, other=0.0).to(tl.float32)")

    # -- programs

    def emitter(self) -> Emitter:
        return Emitter(self.write, "x")

    def run(self, emitter: Emitter, inputs: Mapping[str, Value]) -> Value:
        """What the activation makes of columns, in the dtype of the products."""
        program = self.layout.spec.activation
        (value,) = emitter.run(trace(program, self._inputs(program)), inputs)
        return emitter.cast(emitter.tensor(value), self.layout.dtype)

    def gradient(
        self, emitter: Emitter, inputs: Mapping[str, Value], cotangent: Value
    ) -> list[Value]:
        """What a cotangent of the activation gives each of its inputs."""
        program = self.layout.spec.activation
        known = self._inputs(program)
        graph = trace(program, known)
        result = next(n for n in graph.nodes if n.op == "output").args[0].meta["val"].dtype
        names = [f"h{i}" for i in range(len(self.layout.columns))]
        derived = trace_gradient(program, known, names)
        given = {**inputs, "grad": emitter.cast(cotangent, result)}
        return [emitter.tensor(v) for v in emitter.run(derived, given)]

    def _inputs(self, program: Program) -> dict[str, Input]:
        return {name: Input(self.layout.dtype) for name in program.inputs}


def experts_tensors(layout: Layout, name: str, dtype: torch.dtype, letters: str) -> list[Argument]:
    """Arguments for the tensors of all experts: one, or one each with the strides of the first."""
    if not layout.spec.separate:
        return [Argument(name, pointer(dtype), "e" + letters)]
    names = [f"{name}_{e}" for e in range(layout.spec.experts)]
    return [Argument(n, pointer(dtype)) for n in names]


def sorted_rows(layout: Layout) -> list[Argument]:
    """Which choice each row is, unless rows are sorted already, and where each expert's begin."""
    order = [] if layout.spec.runs else [Argument("order", I32)]
    return [*order, Argument("starts", I32)]


def strides(layout: Layout, name: str, letters: str) -> list[str]:
    """Strides of tensors that every expert has for itself, as numbers of a kernel."""
    return [f"{name}_{s}" for s in letters] if layout.spec.separate else []


def beyond(name: str, size: int, block: int, shape: str) -> str | None:
    """The condition under which positions of a block are below a size; None where all are."""
    return f"({name} < {size}){shape}" if size % block else None


def power_of_two(n: int) -> int:
    """The smallest one that is no less than n."""
    return 1 << (n - 1).bit_length()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def facts(layout: Layout) -> list[str]:
    """What the kernels of a layout compute."""
    spec = layout.spec
    found = [f"activation = {spec.activation}"]
    for i, c in enumerate(layout.columns):
        every = f", every {c.step}" if c.step > 1 else ""
        found.append(f"h{i}: {layout.hidden} columns of product {c.product} from {c.start}{every}")
    kind = "tensors of its own" if spec.separate else "a part of each tensor"
    found.append(f"{spec.experts} experts with {kind}; {layout.features} features of a token")
    for p, (size, matrix, bias) in enumerate(
        zip(layout.sizes, layout.matrices, layout.biases, strict=True)
    ):
        found.append(f"m{p}: {size} rows, {matrix}" + (f"; b{p}: {bias}" if bias else ""))
    if spec.runs:
        found.append("rows are sorted by their experts already")
    order = "before" if spec.weights_first else "after"
    return [
        *found,
        f"x: {layout.tokens}, weights: {layout.weights} {order} the expert, products: "
        f"{layout.dtype}, result: {spec.dtype}",
    ]
