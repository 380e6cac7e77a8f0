"""Kernels by description: to compile ahead of time what a program, or a suite, would launch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fuser.graph.program import Program
from fuser.specs import Columns, MoeSpec

from ...triton.kernel import Kernel
from ...triton.recorder import Recorder
from .build import TEXTS, build
from .config import Config, choose
from .layout import Layout, Matrix, layout_of

KIND = "moe"


@dataclass(frozen=True)
class Entry:
    """One kernel, whatever the device.

    Attributes:
        label: what it is for, in words.
        layout: what its text is specialised on.
        stage: one of `build.TEXTS`.
        arguments: of the stage.
        rows: that an expert has on average, which the config depends on.
    """

    label: str
    layout: Layout
    stage: str
    arguments: tuple[Any, ...]
    rows: float

    def kernels(self, arch: str) -> list[Kernel]:
        """What would be launched on a device for contiguous operands."""
        layout = replace(self.layout, interpreted=False)
        return [self.cut(choose(self.stage, layout, arch, self.rows))]

    def cut(self, config: Config) -> Kernel:
        """The kernel, cut otherwise."""
        layout = replace(self.layout, interpreted=False)
        return _for_contiguous(build(layout, self.stage, self.arguments, config), layout)

    def to_json(self) -> str:
        layout = self.layout
        matrices = [
            [rows, layout.inner(p), _name(layout.matrices[p]), layout.along[p]]
            for p, rows in enumerate(layout.sizes)
        ]
        fields = {
            "kind": KIND,
            "label": self.label,
            "spec": layout.spec.to_text(),
            "tokens": _name(layout.tokens),
            "weights": _name(layout.weights),
            "matrices": matrices,
            "biases": [_name(b) for b in layout.biases if b is not None],
            "precision": layout.precision,
            "stage": self.stage,
            "arguments": [_name(a) if isinstance(a, torch.dtype) else a for a in self.arguments],
            "rows": self.rows,
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Entry:
        data = json.loads(line)
        layout = layout_of(
            MoeSpec.from_text(data["spec"]),
            getattr(torch, data["tokens"]),
            getattr(torch, data["weights"]),
            [Matrix(m, n, getattr(torch, d), along) for m, n, d, along in data["matrices"]],
            [getattr(torch, d) for d in data["biases"]],
            precision=data["precision"],
        )
        if data["stage"] not in TEXTS:
            raise ValueError(f"a mixture has no stage {data['stage']!r}")
        arguments = tuple(getattr(torch, a) if isinstance(a, str) else a for a in data["arguments"])
        return Entry(data["label"], layout, data["stage"], arguments, data["rows"])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _for_contiguous(kernel: Kernel, layout: Layout) -> Kernel:
    """With what the JIT would specialise: strides of one, and multiples of 16."""
    numbers = [n for n, t in kernel.signature if t == "i32"]
    ones = {n for n in numbers if n.endswith("_d") or n.endswith("s_k")}
    fast = [f"m{p}_{axis or 'i'}" for p, axis in enumerate(layout.along)]
    ones |= {n for n in numbers if n.removeprefix("d") in fast}
    ones |= {n for n in numbers if n.startswith(("b", "db")) and n.endswith("_o")}
    plain = {"K", "CHOICES", "PARTS", "indices_t", "weights_t"}
    rest = frozenset(n for n, _ in kernel.signature if n not in ones and n not in plain)
    signature = tuple((n, t) for n, t in kernel.signature if n not in ones)
    constants = (*((n, 1) for n in numbers if n in ones), *kernel.constants)
    return replace(kernel, signature=signature, constants=constants, divisible=rest)


_recorder = Recorder[Entry]()
recording = _recorder.recording


def record(layout: Layout, stage: str, arguments: tuple[Any, ...], rows: float) -> None:
    """Notes a launch, where that is wanted."""
    if _recorder.listens:
        entry = Entry(str(layout.spec.activation), layout, stage, arguments, rows)
        _recorder.note(entry)


def _activation(*body: Any, out: str, inputs: tuple[str, ...]) -> Program:
    text = {"inputs": list(inputs), "body": list(body), "out": out}
    return Program(json.dumps(text, separators=(",", ":")))


def _call(name: str, function: str, *arguments: Any) -> list[Any]:
    names = [{"$": a} if isinstance(a, str) else a for a in arguments]
    return [name, function, names, {}]


SWIGLU = _activation(
    _call("g", "F:silu", "h0"), _call("y", "operator:mul", "g", "h1"), out="y", inputs=("h0", "h1")
)
GELU = _activation(_call("y", "F:gelu", "h0"), out="y", inputs=("h0",))
FEW, MANY = 4.0, 512.0
"""Rows of an expert in decoding and in training."""


def builtin() -> Iterator[Entry]:
    """Kernels of the benchmarked mixtures, and of other kinds of experts, in all dtypes."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        halves = (Columns(0, 0, 768), Columns(0, 768))
        yield from _stages("SwiGLU, 128 experts", _spec(128, SWIGLU, halves, dtype), 1536, 768)
        own = (Columns(0), Columns(1))
        separate = _spec(8, SWIGLU, own, dtype, separate=True)
        yield from _stages("SwiGLU, 8 experts apart", separate, 1536, 1536, firsts=2)
        pairs = (Columns(0, 0, None, 2), Columns(0, 1, None, 2))
        biased = _spec(32, SWIGLU, pairs, dtype, biases=True)
        yield from _stages("SwiGLU in pairs, biases", biased, 1440, 720)
        first = _spec(16, SWIGLU, halves, dtype, weights_first=True)
        yield from _stages("SwiGLU, weights first", first, 1536, 768)
        runs = replace(_spec(32, SWIGLU, halves, dtype), runs=True, dropping=True)
        yield from _stages("SwiGLU, 32 experts, rows in runs", runs, 1536, 768)
        yield from _stages(
            "GELU, biases", _spec(8, GELU, (Columns(0),), dtype, biases=True), 768, 768
        )


def _spec(
    experts: int,
    activation: Program,
    columns: tuple[Columns, ...],
    dtype: torch.dtype,
    *,
    separate: bool = False,
    biases: bool = False,
    weights_first: bool = False,
) -> MoeSpec:
    products = max(c.product for c in columns) + 2
    return MoeSpec(
        experts, columns, activation, (biases,) * products, separate, weights_first, dtype, dtype
    )


def of_layout(label: str, layout: Layout, rows: float, *, training: bool) -> Iterator[Entry]:
    """Kernels of one mixture, forward and, in training, backward."""
    for stage, arguments in _sorted_stages(layout, training=training):
        yield Entry(label, layout, stage, arguments, rows)


def _sorted_stages(layout: Layout, *, training: bool) -> list[tuple[str, tuple[Any, ...]]]:
    """Of rows that are sorted by expert first, unless they come in runs."""
    stages: list[tuple[str, tuple[Any, ...]]] = []
    if not layout.spec.runs:
        stages = [("count", (torch.int64,)), ("scan", ()), ("place", (torch.int64, False))]
    stages += [("up", (True, True)), ("down", ())]
    if training:
        columns: list[int | None] = [None, *range(len(layout.columns))]
        biased = any(layout.spec.biases)
        stages += [("hidden", ()), ("tokens", ()), *(("matrix", (c,)) for c in columns)]
        stages += [("bias", (c,)) for c in columns if biased]
    return stages


def _stages(label: str, spec: MoeSpec, rows: int, hidden: int, firsts: int = 1) -> Iterator[Entry]:
    dtype = spec.product_dtype
    own = [Matrix(rows, 2048, dtype, "i")] * firsts
    matrices = [*own, Matrix(2048, hidden, dtype, "i")]
    biases = [dtype for has in spec.biases if has]
    layout = layout_of(spec, dtype, dtype, matrices, biases)
    label = f"{label}, {_name(dtype)}"
    few = [("place", (torch.int64, True)), ("up", (False, True)), ("down", ())]
    if spec.runs:  # nothing is sorted
        few = few[1:]
    yield from of_layout(label, layout, MANY, training=True)
    for stage, arguments in few:
        yield Entry(f"{label}, decoding", layout, stage, arguments, FEW)
