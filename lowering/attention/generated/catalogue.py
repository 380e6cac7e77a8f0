"""Kernels by description: to compile ahead of time what a program, or a test suite, would launch.

An entry says what a kernel is specialised on and nothing about a device; a line of JSON holds it.
`recording` collects the entries of everything that is launched meanwhile.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fuser.graph.program import IDENTITY_TEXT, Program
from fuser.specs import AttentionSpec
from fuser.torch_private import hint

from ...triton.kernel import Kernel
from ...triton.launch import TARGETS
from ...triton.recorder import Recorder
from .build import Needs, build
from .config import Config, choose, splits_keys
from .layout import Captured, Layout, Operand


@dataclass(frozen=True)
class Entry:
    """One kernel, whatever the device.

    Attributes:
        label: what it is for, in words.
        layout: what its text is specialised on.
        stage: one of `build.STAGES`.
        arguments: of the stage.
        rows: queries that share a key head, which the forward's config depends on.
        visits: positions that a program goes over, on which it depends too; None for many.
    """

    label: str
    layout: Layout
    stage: str
    arguments: tuple[Any, ...]
    rows: int
    visits: int | None = None

    @property
    def may_spill(self) -> bool:
        """Sums of more than 128 features leave too few registers in the smallest of tiles."""
        return max(x.features for x in (*self.layout.q, self.layout.v)) > 128

    def kernels(self, arch: str) -> list[Kernel]:
        """What would be launched on a device for contiguous operands: one kernel, or two where the
        device wants dk and dv apart.

        Raises:
            KeyError: `launch.TARGETS` has no such device.
        """
        target = TARGETS[arch]
        layout = replace(self.layout, interpreted=False)
        entries = [self]
        if self.stage == "keys" and splits_keys(layout, target):
            (needs, *rest) = self.arguments
            if not needs.atomics:
                entries = [
                    replace(self, stage=stage, arguments=(part, *rest))
                    for stage, part in needs.apart()
                ]
        visits = math.inf if self.visits is None else self.visits
        configs = [choose(e.stage, layout, target, rows=e.rows, visits=visits) for e in entries]
        return [e.cut(config) for e, config in zip(entries, configs, strict=True)]

    def kernel(self, arch: str) -> Kernel:
        """The only one of them."""
        (found,) = self.kernels(arch)
        return found

    def cut(self, config: Config) -> Kernel:
        """The kernel, cut otherwise."""
        layout = replace(self.layout, interpreted=False)
        return _for_contiguous(build(layout, self.stage, self.arguments, config))

    def to_json(self) -> str:
        layout = self.layout
        fields = {
            "label": self.label,
            "spec": layout.spec.to_text(),
            "q": [_operand(x) for x in layout.q],
            "k": [_operand(x) for x in layout.k],
            "v": _operand(layout.v),
            "captured": [{**asdict(c), "dtype": _name(c.dtype)} for c in layout.captured],
            "grouped": layout.grouped,
            "precision": layout.precision,
            "stage": self.stage,
            "arguments": [asdict(a) if isinstance(a, Needs) else a for a in self.arguments],
            "rows": self.rows,
            "visits": self.visits,
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Entry:
        data = json.loads(line)
        captured = [{**c, "dtype": getattr(torch, c["dtype"])} for c in data["captured"]]
        layout = Layout(
            AttentionSpec.from_text(data["spec"]),
            tuple(_read(x) for x in data["q"]),
            tuple(_read(x) for x in data["k"]),
            _read(data["v"]),
            tuple(Captured(**c) for c in captured),
            data["grouped"],
            precision=data["precision"],
        )
        return Entry(
            data["label"],
            layout,
            data["stage"],
            tuple(_needs(a) if isinstance(a, dict) else a for a in data["arguments"]),
            data["rows"],
            data.get("visits"),
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _operand(x: Operand) -> list[Any]:
    return [_name(x.dtype), x.features]


def _read(found: list[Any]) -> Operand:
    return Operand(getattr(torch, found[0]), found[1])


def _needs(found: dict[str, Any]) -> Needs:
    return Needs(**dict(found, captured=tuple(found["captured"])))


def _for_contiguous(kernel: Kernel) -> Kernel:
    """With what the JIT would specialise: strides of one, and multiples of 16."""
    ones = {n for n, t in kernel.signature if t == "i32" and n.endswith(("_d", "_k"))}
    ones |= {n for n, _ in kernel.signature if n.startswith(("row_", "delta_")) and n[-2:] == "_m"}
    ones |= {n for n, _ in kernel.signature if n.startswith("dc") and n[-2:] == "_n"}
    plain = {"B", "H", "HKV", "GROUP", "SPLITS", "REPEATS", "EACH"}
    rest = frozenset(n for n, _ in kernel.signature if n not in ones and n not in plain)
    signature = tuple((n, t) for n, t in kernel.signature if n not in ones)
    constants = (*((n, 1) for n, _ in kernel.signature if n in ones), *kernel.constants)
    return replace(kernel, signature=signature, constants=constants, divisible=rest)


_recorder = Recorder[Entry]()
recording = _recorder.recording


def record(
    layout: Layout, stage: str, arguments: tuple[Any, ...], rows: int, visits: float
) -> None:
    """Notes a launch, where that is wanted. Few visits are one number, and so one entry."""
    if _recorder.listens:
        few, known = SHORT if visits < LONG else None, hint(rows)
        rows = LONG if known is None else known
        entry = Entry(str(layout.score), layout, stage, arguments, rows, few)
        _recorder.note(entry)


def _program(text: str, names: list[str], steps: list[Any]) -> Program:
    body = {"inputs": names, "body": steps, "out": text}
    return Program(json.dumps(body, separators=(",", ":")))


def _scaled(*more: Any, out: str = "x", inputs: tuple[str, ...] = ("s0",)) -> Program:
    scale = {"float": (0.125).hex()}
    return _program(out, list(inputs), [["x", "operator:mul", [{"$": "s0"}, scale], {}], *more])


def _plus(name: str) -> Program:
    step = ["y", "operator:add", [{"$": "x"}, {"$": name}], {}]
    return _scaled(step, out="y", inputs=("s0", name))


def _number(x: float) -> Any:
    return {"float": x.hex() if math.isfinite(x) else str(x)}


SOFTCAP = _scaled(
    ["a", "operator:truediv", [{"$": "x"}, _number(50.0)], {}],
    ["b", "torch:tanh", [{"$": "a"}], {}],
    ["y", "operator:mul", [{"$": "b"}, _number(50.0)], {}],
    out="y",
)
CAUSAL = _program("m", ["iq", "ik"], [["m", "operator:le", [{"$": "ik"}, {"$": "iq"}], {}]])
WINDOW = _program(
    "m",
    ["iq", "ik"],
    [
        ["a", "operator:le", [{"$": "ik"}, {"$": "iq"}], {}],
        ["d", "operator:sub", [{"$": "iq"}, {"$": "ik"}], {}],
        ["b", "operator:lt", [{"$": "d"}, 1024], {}],
        ["m", "operator:and_", [{"$": "a"}, {"$": "b"}], {}],
    ],
)
DOCUMENTS = _program(
    "m",
    ["iq", "ik", "c0", "c1"],
    [
        ["a", "operator:eq", [{"$": "c0"}, {"$": "c1"}], {}],
        ["b", "operator:le", [{"$": "ik"}, {"$": "iq"}], {}],
        ["m", "operator:and_", [{"$": "a"}, {"$": "b"}], {}],
    ],
)


SHORT, LONG = 512, 4096
"""Positions that programs of the short and of the long sequences in the catalogue go over."""


def builtin() -> Iterator[Entry]:
    """Kernels of the benchmarked kinds of attention, at head dimensions of 64 to 256."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for features in (64, 128, 256):
            for label, program, mask, captured, sink in _variants(dtype):
                layout = _layout(program, mask, captured, sink, dtype, features, features)
                yield from _stages(f"{label}, {features} {_name(dtype)}", layout)
        layout = _layout(_scaled(), CAUSAL, (), "", dtype, 192, 128)
        yield from _stages(f"latent, 192/128 {_name(dtype)}", layout)


def _variants(dtype: torch.dtype) -> Iterator[tuple[str, Program, Program | None, Any, str]]:
    yield "plain", _scaled(), None, (), ""
    yield "causal", _scaled(), CAUSAL, (), ""
    yield "window", _scaled(), WINDOW, (), ""
    yield "softcap, causal", SOFTCAP, CAUSAL, (), ""
    yield "bias", _plus("c0"), None, (Captured(dtype, "hqk", False),), ""
    yield "mask of keys", _plus("c0"), None, (Captured(dtype, "bk", False),), ""
    yield "sink, causal", _scaled(), CAUSAL, (Captured(dtype, "h", False),), "c0"
    numbers = (Captured(torch.int64, "bq", False), Captured(torch.int64, "bk", False))
    yield "documents", _scaled(), DOCUMENTS, numbers, ""


def _layout(
    program: Program,
    mask: Program | None,
    captured: tuple[Captured, ...],
    sink: str,
    dtype: torch.dtype,
    features: int,
    values: int,
) -> Layout:
    spec = AttentionSpec(
        1, len(captured), program, Program(IDENTITY_TEXT), dtype, dtype, torch.float32, sink,
        mask=mask,
    )  # fmt: skip
    q = (Operand(dtype, features),)
    return Layout(spec, q, q, Operand(dtype, values), captured, grouped=True)


def of_layout(
    label: str, layout: Layout, rows: int, visits: int | None, *, training: bool
) -> Iterator[Entry]:
    """Kernels of one attention, forward and, in training, backward."""
    needs, listed = _needs_all(layout), layout.visible is not None
    if listed:
        yield Entry(label, layout, "table", (), rows)
    yield Entry(label, layout, "forward", (False, False, listed), rows, visits)
    if training:
        yield Entry(label, layout, "rows", (needs, listed), rows, visits)
        yield Entry(label, layout, "keys", (needs, listed), rows, visits)


def _needs_all(layout: Layout) -> Needs:
    """Gradients of all operands that have one here: tables do not."""
    read = {*layout.spec.score.inputs, *layout.spec.probs.inputs}
    each = [(i, c) for i, c in enumerate(layout.captured) if f"c{i}" in read]
    wanted = [i for i, c in each if c.dtype.is_floating_point and c.rank < 0]
    return Needs(True, True, True, tuple(wanted))


def _stages(label: str, layout: Layout) -> Iterator[Entry]:
    needs = _needs_all(layout)
    listed = layout.visible is not None
    if listed:
        yield Entry(label, layout, "table", (), 4096)
    for visits in (None, SHORT):
        name = label if visits is None else f"{label}, short"
        yield Entry(name, layout, "forward", (False, False, listed), 4096, visits)
        yield Entry(name, layout, "rows", (needs, listed), 4096, visits)
        yield Entry(name, layout, "keys", (needs, listed), 4096, visits)
    yield Entry(f"{label}, decoding", layout, "forward", (True, True), 4)
    yield Entry(label, layout, "combine", (), 4)
    yield Entry(f"{label}, atomics", layout, "keys", (replace(needs, atomics=True), listed), 4096)
    for c in needs.over_tiles(layout):
        yield Entry(label, layout, "tiles", (c,), 4096)
