"""What all kernels write for one tile of scores: loads, products, the program, probabilities.

A tile has its queries in rows and its keys in columns, or, for the gradients of k and v, the other
way around. `TileWriter` knows which, so that the text that it writes broadcasts the right way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fuser.graph.program import Program

from ...triton.emitter import Emitter, Value
from ...triton.source import Source
from ...triton.trace import trace, trace_gradient
from .layout import Layout, Operand
from .numerics import scaled

LOG2E = 1.4426950408889634
_TYPES = {
    torch.float16: "tl.float16", torch.bfloat16: "tl.bfloat16", torch.float32: "tl.float32",
}  # fmt: skip
_LARGEST_CHUNK = 256


def chunks(features: int) -> list[tuple[int, int]]:
    """(start, size) of the powers of two that cover the features, at most three of them.

    192 is 128 and 64, not 256; a size is at least 16, which tensor cores ask for.
    """
    rest, start, found = -(-features // 16) * 16, 0, list[tuple[int, int]]()
    while rest > 0:
        size = min(1 << (rest.bit_length() - 1), _LARGEST_CHUNK)
        if size < rest < _LARGEST_CHUNK and (
            (len(found) == 1 and rest != size) or rest > 1.5 * size
        ):
            size = 1 << rest.bit_length()
        found.append((start, size))
        start, rest = start + size, rest - size
    return found


@dataclass(frozen=True)
class Place:
    """Where the rows of a tile are.

    Attributes:
        scalars: offsets that they share.
        vector: each one's own.
        start: the head and the first position, which a descriptor is asked for.
        block: how many they are.
    """

    scalars: tuple[str, ...]
    vector: str
    start: str = ""
    block: str = ""

    def base(self, name: str) -> str:
        """A pointer that all rows share."""
        return " + ".join((name, *self.scalars))

    def pointers(self, name: str) -> str:
        """A pointer for each row."""
        return f"{self.base(name)} + {self.vector}"


class TileWriter:
    """Writes the parts of one kernel's tiles.

    Attributes:
        keys_first: tiles are (keys, queries).
        packed: the rows of a tile are the queries of all heads that share a key head.
    """

    def __init__(
        self, write: Source, layout: Layout, *, keys_first: bool = False, packed: bool = False
    ) -> None:
        self.write, self.layout = write, layout
        self.keys_first, self.packed = keys_first, packed
        self.functions: set[str] = set()
        self._captured: dict[str, Value] = {}
        self._described: set[str] = set()
        self._emitter = Emitter(write, "x")

    # -- orientation

    def rows(self, vector: str) -> str:
        """A vector over queries, to be combined with a tile."""
        return f"{vector}[None, :]" if self.keys_first else f"{vector}[:, None]"

    def keys(self, vector: str) -> str:
        """A vector over keys, to be combined with a tile."""
        return f"{vector}[:, None]" if self.keys_first else f"{vector}[None, :]"

    def sum_over_keys(self, tile: str) -> str:
        return f"tl.sum({tile}, {0 if self.keys_first else 1})"

    def sum_over_rows(self, tile: str) -> str:
        return f"tl.sum({tile}, {1 if self.keys_first else 0})"

    @property
    def zeros(self) -> str:
        """A tile of zeros."""
        shape = "BLOCK_N, BLOCK_M" if self.keys_first else "BLOCK_M, BLOCK_N"
        return f"tl.zeros([{shape}], tl.float32)"

    # -- loads

    def features(self, *operands: Operand) -> None:
        """Positions along the features, once for every chunk."""
        for start, size in sorted({c for o in operands for c in chunks(o.features)}):
            plus = f"{start} + " if start else ""
            self.write(f"{_along(start, size)} = {plus}tl.arange(0, {size})")

    def queries(self, name: str, letter: str = "m") -> Place:
        """Where this tile's queries are in a tensor with strides b, h and m."""
        if self.packed:
            return Place((f"b * {name}_b",), f"(h * {name}_h + iq64 * {name}_{letter})")
        head = (f"b * {name}_b", f"h * {name}_h", f"first_row * {name}_{letter}")
        start = "h.to(tl.int32), first_row.to(tl.int32)"
        return Place(head, f"(rows * {name}_{letter})", start, "BLOCK_M")

    def keys_of(self, name: str, head: str = "hk") -> Place:
        """Where this tile's keys are in a tensor with strides b, h and n."""
        scalars = (f"b * {name}_b", f"{head} * {name}_h", f"first_key * {name}_n")
        start = f"{head}.to(tl.int32), first_key.to(tl.int32)"
        return Place(scalars, f"(keys * {name}_n)", start, "BLOCK_N")

    def descriptors(self, *others: tuple[str, Operand]) -> None:
        """Where the hardware finds tiles of q, k, v and others of (B, H, SQ, ...), if it loads.

        Beyond the last head, position or feature it gives zeros.
        """
        if not self.layout.tma:
            return
        products = self.layout.products
        rows = [(f"q{i}", self.layout.q[i]) for i in products]
        keys = [(f"k{i}", self.layout.k[i]) for i in products]
        if not self.packed:
            for name, operand in (*rows, *others):
                self._describe(name, operand, "H, SQ", "m", "BLOCK_M")
        for name, operand in (*keys, ("v", self.layout.v)):
            self._describe(name, operand, "HKV, SK", "n", "BLOCK_N")

    def _describe(self, name: str, operand: Operand, sizes: str, letter: str, block: str) -> None:
        self._described.add(name)
        for size in sorted({size for _, size in chunks(operand.features)}):
            shape, strides = f"[{sizes}, {operand.features}]", f"[{name}_h, {name}_{letter}, 1]"
            self.write(f"{name}_tiles_{size} = tl.make_tensor_descriptor(")
            self.write(f"    {name} + b * {name}_b, {shape}, {strides}, [1, {block}, {size}]")
            self.write(")")

    def load(self, name: str, operand: Operand, at: Place, valid: str | None) -> list[str]:
        """Rows of q, k, v or a gradient, as (positions, features): names of the chunks.

        Args:
            name: of the tensor.
            operand: its dtype and features.
            at: where the rows are.
            valid: which rows there are; None for all.
        """
        names = []
        for i, (start, size) in enumerate(chunks(operand.features)):
            names.append(f"{name}_{i}")
            widen = ".to(tl.float32)" if self._reads_wide(operand.dtype) else ""
            if name in self._described:
                tile = f"{name}_tiles_{size}.load([{at.start}, {start}])"
                self.write(f"{name}_{i} = {tile}.reshape([{at.block}, {size}]){widen}")
                continue
            along = _along(start, size)
            pointers = f"{at.base(name)} + {at.vector}[:, None] + ({along} * {name}_d)[None, :]"
            masks = [f"{valid}[:, None]"] if valid else []
            if start + size > operand.features:
                masks.append(f"({along} < {operand.features})[None, :]")
            mask = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
            self.write(f"{name}_{i} = tl.load({pointers}{mask}){widen}")
        return names

    def _reads_wide(self, dtype: torch.dtype) -> bool:
        """The interpreter's products take bf16 for integers."""
        return self.layout.interpreted and dtype is torch.bfloat16

    def store(
        self,
        name: str,
        operand: Operand,
        at: Place,
        valid: str,
        values: Sequence[str],
        *,
        added: bool = False,
    ) -> None:
        """Rows of a result, chunk by chunk; or `added` to what is there, in any order."""
        for value, (start, size) in zip(values, chunks(operand.features), strict=True):
            along = _along(start, size)
            pointers = f"{at.base(name)} + {at.vector}[:, None] + ({along} * {name}_d)[None, :]"
            mask = f"{valid}[:, None]"
            if start + size > operand.features:
                mask += f" & ({along} < {operand.features})[None, :]"
            if added:
                self.write(f'tl.atomic_add({pointers}, {value}, mask={mask}, sem="relaxed")')
            else:
                value = self.stored(value, operand.dtype)
                self.write(f"tl.store({pointers}, {value}, mask={mask})")

    def stored(self, text: str, dtype: torch.dtype) -> str:
        """An fp32 value on its way to memory, where it becomes the nearest one of a dtype."""
        return self._nearest(text) if self._reads_wide(dtype) else text

    def captured(
        self,
        available: str,
        valid_rows: str | None,
        valid_keys: str | None,
        only: Collection[int] | None = None,
    ) -> None:
        """Loads the captured tensors, or `only` some, that vary along `available` axes at most."""
        for i, captured in enumerate(self.layout.captured):
            name = f"c{i}"
            if name in self._captured or captured.rank >= 0 or set(captured.axes) - set(available):
                continue
            if only is not None and i not in only:
                continue
            over_rows = "q" in captured.axes or (self.packed and "h" in captured.axes)
            over_keys = "k" in captured.axes
            both = over_rows and over_keys
            terms, masks = [name, *self._scalars(name, captured.axes)], []
            if over_rows:
                vector = self._row_vector(name, captured.axes)
                terms.append(self.rows(vector) if both else vector)
            if over_keys:
                vector = f"(keys * {name}_k)"
                terms.append(self.keys(vector) if both else vector)
            if over_rows and valid_rows:
                masks.append(self.rows(valid_rows) if both else valid_rows)
            if over_keys and valid_keys:
                masks.append(self.keys(valid_keys) if both else valid_keys)
            mask = f", mask={' & '.join(masks)}, other=0" if masks else ""
            held = self.layout.held(captured.dtype)
            widen = ".to(tl.float32)" if captured.dtype in (torch.float16, torch.bfloat16) else ""
            if captured.dtype is torch.bool:  # the pointer may be one to bytes
                widen = " != 0"
            self.write(f"{name}_value = tl.load({' + '.join(terms)}{mask}){widen}")
            text = f"{name}_value"
            if over_rows != over_keys:
                text = self.rows(text) if over_rows else self.keys(text)
            self._captured[name] = Value(text, held)

    def _scalars(self, name: str, axes: str) -> list[str]:
        """Offsets of a captured tensor that a whole tile shares."""
        position = {"b": "b", "h": "h", "q": "first_row", "k": "first_key"}
        if self.packed:
            axes = axes.replace("h", "").replace("q", "")
        return [f"{position[a]} * {name}_{a}" for a in axes]

    def _row_vector(self, name: str, axes: str) -> str:
        if not self.packed:
            return f"(rows * {name}_q)"
        position = {"h": "h", "q": "iq64"}
        terms = [f"{position[a]} * {name}_{a}" for a in axes if a in position]
        return f"({' + '.join(terms)})"

    def sink(self) -> str:
        """The logit that joins the denominator, one number or a vector over queries."""
        if self.layout.spec.sink == "0":
            return "0.0"
        value = self._captured[self.layout.spec.sink]
        text = value.text.removesuffix("[:, None]")
        score = self.layout.score_dtype
        wide = self._emitter.cast(
            self._emitter.cast(Value(text, value.dtype), score), torch.float32
        )
        return f"{wide.text} * {LOG2E}" if self.layout.in_base_two else wide.text

    @contextmanager
    def tile(self) -> Iterator[None]:
        """One body of a loop: what is loaded or computed in it is unknown after it."""
        before, emitter = dict(self._captured), self._emitter
        self._emitter = Emitter(self.write, "x")
        yield
        self.functions |= self._emitter.functions
        self._captured, self._emitter = before, emitter

    # -- products

    def operand(self, text: str, dtype: torch.dtype) -> str:
        """An fp32 tile as an operand of a product with tiles of a dtype."""
        if dtype is torch.float32:
            return text
        if self._reads_wide(dtype):
            return self._nearest(text)
        return f"{text}.to({_TYPES[dtype]})"

    def _nearest(self, text: str) -> str:
        """The interpreter's own cast to bf16 truncates."""
        self.functions.add("bfloat16")
        return f"bfloat16({text})"

    def dot(self, a: str, b: str, dtype: torch.dtype, into: str = "") -> str:
        """The product of two tiles of a dtype, added to another, in fp32."""
        options = f', input_precision="{self.layout.precision}"' if dtype is torch.float32 else ""
        return f"tl.dot({a}, {b}{', ' + into if into else ''}{options})"

    def product(
        self, name: str, rows: Sequence[str], keys: Sequence[str], dtype: torch.dtype
    ) -> None:
        """`name` = rows keysᵀ over all chunks of their features, in this kernel's orientation."""
        into = ""
        for r, k in zip(rows, keys, strict=True):
            a, b = (k, r) if self.keys_first else (r, k)
            self.write(f"{name} = {self.dot(a, f'tl.trans({b})', dtype, into)}")
            into = name

    # -- programs

    def _inputs(self, program: Program, known: Mapping[str, Value]) -> dict[str, Value]:
        positions = self._positions(clamped=any(c.rank >= 0 for c in self.layout.captured))
        found: dict[str, Value] = {}
        for name, described in self.layout.inputs(program).items():
            if described.rank >= 0:
                found[name] = Value(name, described.dtype)
            elif name in positions:
                found[name] = Value(positions[name], described.dtype)
            elif name in known:
                found[name] = known[name]
            else:
                found[name] = self._captured[name]
        return found

    def _positions(self, *, clamped: bool) -> dict[str, str]:
        """What programs read of where they are.

        Clamped, it is a position that exists, so that a table has an element for it.
        """
        rows, keys, head = "iq", "ik", "h"
        if clamped and self.packed:  # a tile has room for more heads than there are
            head = self._emitter.let("tl.minimum(h, H - 1)", torch.int32).text
        if clamped:
            rows = self._emitter.let("tl.minimum(iq, SQ - 1)", torch.int32).text
            keys = self._emitter.let("tl.minimum(ik, SK - 1)", torch.int32).text
        return {
            "ib": "b", "ih": self.rows(head) if self.packed else head,
            "iq": self.rows(rows), "ik": self.keys(keys),
            "nb": "B", "nh": "H", "nq": "SQ", "nk": "SK",
        }  # fmt: skip

    def run(self, program: Program, known: Mapping[str, Value]) -> Value:
        """The value of a program on this tile."""
        graph = trace(program, self.layout.inputs(program))
        (value,) = self._emitter.run(graph, self._inputs(program, known))
        return value

    def gradient(
        self, program: Program, known: Mapping[str, Value], cotangent: str, wrt: Sequence[str]
    ) -> dict[str, Value]:
        """What a cotangent (a tile in fp32) of a program's value gives its inputs `wrt`."""
        wanted = [n for n in wrt if n in self.layout.inputs(program)]
        if not wanted:
            return {}
        graph = trace_gradient(program, self.layout.inputs(program), tuple(wanted))
        rounded = self._emitter.cast(Value(cotangent, torch.float32), self._dtype_of(program))
        inputs = {**self._inputs(program, known), "grad": rounded}
        return dict(zip(wanted, self._emitter.run(graph, inputs), strict=True))

    def _dtype_of(self, program: Program) -> torch.dtype:
        graph = trace(program, self.layout.inputs(program))
        result: Any = next(n for n in graph.nodes if n.op == "output").args[0]
        return result.meta["val"].dtype

    def scores(self) -> dict[str, Value]:
        """Inputs of the score program, from the products `s0`, `s1`, ... in fp32."""
        wide = {f"s{i}": Value(f"s{i}", torch.float32) for i in self.layout.products}
        return {n: self._emitter.cast(v, self.layout.score_dtype) for n, v in wide.items()}

    def score(self) -> None:
        """`score` in fp32, in this attention's units, before any mask of its own."""
        program = self.layout.score
        if self.layout.in_base_two:
            program = scaled(program, LOG2E)
        self.write(f"score = {self.wide(self.run(program, self.scores()))}")

    def mask(self) -> str:
        """The condition under which the spec's mask keeps a position."""
        assert self.layout.spec.mask is not None
        return self.run(self.layout.spec.mask, {}).text

    def drop(self) -> None:
        """`kept`: probabilities of which some were dropped and the others grew."""
        rate = self.layout.spec.dropout
        if rate:
            head = self.rows("(b * H + h)") if self.packed else "(b * H + h)"
            where = f"{self.rows('iq')}, {self.keys('ik')}"
            self.write(f"gone = dropped(seed_value, {head}, {where}, {rate!r})")
            self.write(f"kept = tl.where(gone, 0.0, p * {1 / (1 - rate)!r})")

    def probabilities(self) -> Value:
        """The input of the program `probs`."""
        name = "kept" if self.layout.spec.dropout else "p"
        return self._emitter.cast(Value(name, torch.float32), self.layout.p_dtype)

    def wide(self, value: Value) -> str:
        """A value of a program in fp32."""
        return self._emitter.cast(value, torch.float32).text

    def exponential(self, difference: str) -> str:
        """exp of a difference of scores, in this attention's units."""
        return (
            f"tl.exp2({difference})"
            if self.layout.in_base_two
            else f"tl.exp2(({difference}) * {LOG2E})"
        )


def _along(start: int, size: int) -> str:
    return f"d{start}_{size}" if start else f"d{size}"


__all__ = ["LOG2E", "TileWriter", "chunks"]
