"""The text of the kernels.

    y       = program(c_0, c_1, ...)
    dc_j   += ∂program(c)ᵀ dy

The backward starts from the operands, and from those alone that the derivative reads. The gradient
of an operand of several parts is one tensor, of which each part is written where it belongs. Where
an operand is broadcast its gradient is a sum: over rows by the program that has them, in fp32 and
in registers, over programs at last (`problem`). Each sum has one owner and one order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch.fx import Graph

from ...triton.build import builder_of
from ...triton.emitter import Emitter, Value
from ...triton.kernel import pointer
from ...triton.trace import trace, trace_gradient, unrounded
from ..operands import inputs_of
from .config import Config
from .layout import Layout, Sum
from .text import Text

FP32 = torch.float32


def forward_text(layout: Layout, config: Config) -> Text:
    """A tile of the result."""
    text = Text("forward", "A tile of the result.", layout, config)
    spec = layout.spec
    text.block()
    text.rows(f"turn * {config.block_m}")
    for j, dtype in enumerate(layout.dtypes):
        text.place(f"c{j}", dtype)
    text.place("y", spec.dtype)
    with text.emitting() as emitter:
        graph = trace(spec.program, inputs_of(spec, layout.dtypes))
        (y,) = emitter.run(graph, text.operands(spec.program.inputs))
        text.store("y", emitter.cast(emitter.tensor(y), spec.dtype))
    return text


def backward_text(layout: Layout, config: Config, wanted: tuple[int, ...]) -> Text:
    """A tile of the gradient of each operand that wants one, or its share of a sum."""
    return _Backward(layout, config, wanted).text


class _Backward:
    def __init__(self, layout: Layout, config: Config, wanted: Sequence[int]) -> None:
        self.layout, self.spec = layout, layout.spec
        self.text = Text("backward", "A tile of the gradients.", layout, config)
        self.inputs = [n for n, (j, _) in self.spec.named.items() if j in wanted]
        self.summed = [n for n in self.inputs if self._sum(n) in (Sum.COLUMNS, Sum.TILES)]
        derived = trace_gradient(
            self.spec.program, inputs_of(self.spec, layout.dtypes), self.inputs
        )
        self._write(unrounded(derived))

    def _sum(self, name: str) -> Sum:
        return self.layout.sum_of(f"c{self.spec.named[name][0]}")

    def _write(self, derived: Graph) -> None:
        text = self.text
        read = [str(n.target) for n in derived.nodes if n.op == "placeholder" and n.users]
        text.block(shared=bool(self.summed))
        for name in self.summed:
            text.write(f"{name}_sum = tl.zeros({text.shape}, tl.float32)")
        with self._rows(), text.emitting() as emitter:
            self._place([n for n in read if n != "grad"])
            given = text.operands([n for n in read if n != "grad"])
            given["grad"] = emitter.cast(
                text.load("grad", self.spec.dtype, "grad_tile"), self._result_dtype()
            )
            unread = {str(n.target) for n in derived.nodes if n.op == "placeholder"} - set(given)
            nothing = {name: Value("0.0", FP32) for name in unread}
            results = emitter.run(derived, {**given, **nothing})
            self._store(emitter, dict(zip(self.inputs, results, strict=True)))
        for name in self.summed:
            self._store_sum(name)

    @contextmanager
    def _rows(self) -> Generator[None]:
        """The rows of a program: one tile of them, or several where it adds something up."""
        text, m = self.text, self.text.config.block_m
        if not self.summed:
            text.rows(f"turn * {m}")
            yield
            return
        rows, step = text.number("ROWS"), f"{text.number('PROGRAMS')} * {m}"
        with text.write.block(f"for first_row in range(turn * {m}, {rows}, {step}):"):
            text.rows("first_row")
            yield

    def _place(self, read: Sequence[str]) -> None:
        text, dtypes = self.text, self.layout.dtypes
        for j in sorted({self.spec.named[n][0] for n in read}):
            text.place(f"c{j}", dtypes[j])
        text.place("grad", self.spec.dtype)
        for j in sorted({self.spec.named[n][0] for n in self.inputs}):
            if self.layout.sum_of(f"c{j}") is Sum.EACH:
                text.place(f"dc{j}", dtypes[j])

    def _result_dtype(self) -> torch.dtype:
        """Of the program, before it is rounded to that of y."""
        graph = trace(self.spec.program, inputs_of(self.spec, self.layout.dtypes))
        return next(n for n in graph.nodes if n.op == "output").args[0].meta["val"].dtype

    def _store(self, emitter: Emitter, grads: Mapping[str, Value]) -> None:
        pairs: dict[int, list[Value]] = {}
        for name, grad in grads.items():
            j, part = self.spec.named[name]
            wide = emitter.cast(emitter.tensor(grad), FP32)
            kind = self._sum(name)
            if kind is Sum.ROWS:
                self._store_rows(name, wide)
            elif kind is not Sum.EACH:
                self.text.write(f"{name}_sum += {self.text.full(wide.text)}")
            elif f"dc{j}" in self.layout.paired:
                pairs.setdefault(j, []).append(emitter.cast(wide, self.layout.dtypes[j]))
            else:
                self.text.store(f"dc{j}", emitter.cast(wide, self.layout.dtypes[j]), part)
        for j, values in pairs.items():
            self.text.store_pair(f"dc{j}", values)

    def _store_rows(self, name: str, value: Value) -> None:
        text = self.text
        terms = [
            self._start(name),
            *([f"lead * {text.number('ROWS')}"] if self.layout.lead else []),
        ]
        if text.across != "1":
            terms.append(f"piece.to(tl.int64) * {text.number('ALL')}")
        mask = ", mask=in_rows" if text.masks_rows else ""
        total = f"tl.sum({text.full(value.text)}, 1)"
        text.write(f"tl.store({' + '.join([*terms, 'row'])}, {total}{mask})")

    def _store_sum(self, name: str) -> None:
        text = self.text
        line = "(lead * PROGRAMS + turn)" if self.layout.lead else "turn"
        start = f"{self._start(name)} + {line}.to(tl.int64)"
        if self._sum(name) is Sum.TILES:
            total = f"tl.sum(tl.sum({name}_sum, 1), 0)"
            text.write(f"tl.store({start} * {text.across} + {text.piece}, {total})")
            return
        mask = ", mask=in_f" if text.masks_columns else ""
        text.write(f"tl.store({start} * {text.columns} + f, tl.sum({name}_sum, 0){mask})")

    def _start(self, name: str) -> str:
        """Where the sums of a part of an operand begin."""
        j, part = self.spec.named[name]
        sums = self.text.tensor(f"dc{j}", pointer(FP32))
        if not part:
            return sums
        return f"{sums} + tl.full([], {part}, tl.int64) * {self.text.number(f'dc{j}_part')}"


TEXTS: dict[str, Callable[..., Text]] = {"forward": forward_text, "backward": backward_text}

build = builder_of(TEXTS)
"""A kernel for a layout."""
