"""What all kernels compute of one tile of scores: products, the program, probabilities.

A tile has its queries in rows and its keys in columns, or, for the gradients of k and v, the other
way around. `TileWriter` knows which, so that the text that it writes broadcasts the right way.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import Graph, Node

from fuser.graph.program import Program

from ...triton.emitter import Emitter, Value
from ...triton.source import Source
from ...triton.trace import trace, trace_gradient
from .layout import Layout
from .memory import TileMemory
from .numerics import scaled

LOG2E = 1.4426950408889634
_TYPES = {
    torch.float16: "tl.float16", torch.bfloat16: "tl.bfloat16", torch.float32: "tl.float32",
}  # fmt: skip


class TileWriter(TileMemory):
    """Writes the parts of one kernel's tiles."""

    def __init__(
        self, write: Source, layout: Layout, *, keys_first: bool = False, packed: bool = False
    ) -> None:
        super().__init__(write, layout, keys_first=keys_first, packed=packed)
        self._emitter = Emitter(write, "x")

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
    def tile(self) -> Generator[None]:
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
                wide = described.dtype is torch.int64
                text = f"tl.cast({positions[name]}, tl.int64)" if wide else positions[name]
                found[name] = Value(text, described.dtype)
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
        found = dict(zip(wanted, self._emitter.run(graph, inputs), strict=True))
        results: Any = next(n for n in graph.nodes if n.op == "output").args[0]
        readers = _readers(graph, "grad")
        for name, node in zip(wanted, results, strict=True):
            if node not in readers:  # of steps: a number, where a tile is expected
                value = found[name]
                found[name] = self._emitter.let(f"{self.wide(value)} + {self.zeros}", value.dtype)
        return found

    def slope(self, program: Program, name: str) -> float | None:
        """The derivative of a program by an input, where it is the same number everywhere."""
        if self.layout.faithful:
            return None
        graph = trace_gradient(program, self.layout.inputs(program), (name,))
        node: Any = next(n for n in graph.nodes if n.op == "output").args[0][0]
        found = 1.0
        while isinstance(node, Node) and node.op == "call_function":
            if node.meta["val"].dtype is not torch.float32:
                return None
            inner, *more = node.args
            number = more[0] if more else None
            if node.target is torch.ops.aten.mul.Tensor and isinstance(number, (int, float)):
                found *= number
            elif node.target is torch.ops.aten.div.Tensor and isinstance(number, (int, float)):
                found /= number
            elif node.target is not torch.ops.aten._to_copy.default:
                return None
            node = inner
        known = isinstance(node, Node) and node.target == "grad" and math.isfinite(found)
        return found if known else None

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


def _readers(graph: Graph, name: str) -> set[Node]:
    """What depends on an input, which included."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.target == name or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found
