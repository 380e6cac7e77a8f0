"""Kernels of routers by description: to compile ahead of time what would be launched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from fuser.graph.program import Program
from fuser.specs import Groups, RouterSpec

from ...triton.kernel import Kernel
from ...triton.recorder import Recorder
from .layout import Layout, layout_of
from .text import TEXTS, build

KIND = "router"


@dataclass(frozen=True)
class Entry:
    """One kernel, whatever the device.

    Attributes:
        label: what it is for, in words.
        layout: what its text is specialised on.
        stage: one of `text.TEXTS`.
    """

    label: str
    layout: Layout
    stage: str

    def kernels(self, arch: str) -> list[Kernel]:
        """What would be launched on a device for contiguous operands."""
        kernel = build(self.layout, self.stage)
        ones = {n for n, t in kernel.signature if t == "i32" and n.endswith(("_e", "_k"))}
        rest = frozenset(n for n, t in kernel.signature if t != "i32")
        signature = tuple((n, t) for n, t in kernel.signature if n not in ones)
        constants = tuple((n, 1) for n, _ in kernel.signature if n in ones)
        return [replace(kernel, signature=signature, constants=constants, divisible=rest)]

    def to_json(self) -> str:
        fields = {
            "kind": KIND,
            "label": self.label,
            "spec": self.layout.spec.to_text(),
            "experts": self.layout.experts,
            "logits": _name(self.layout.logits),
            "captured": [_name(dtype) for dtype in self.layout.captured],
            "stage": self.stage,
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Entry:
        data = json.loads(line)
        captured = tuple(getattr(torch, name) for name in data["captured"])
        spec, logits = RouterSpec.from_text(data["spec"]), getattr(torch, data["logits"])
        if data["stage"] not in TEXTS:
            raise ValueError(f"a router has no stage {data['stage']!r}")
        layout = layout_of(spec, data["experts"], logits, captured)
        return Entry(data["label"], layout, data["stage"])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_recorder = Recorder[Entry]()
recording = _recorder.recording


def record(layout: Layout, stage: str) -> None:
    """Notes a launch, where that is wanted."""
    if _recorder.listens:
        _recorder.note(Entry("router", layout, stage))


def _program(out: str, *body: object, inputs: tuple[str, ...] = ()) -> Program:
    text = {"inputs": list(inputs or (out,)), "body": list(body), "out": out}
    return Program(json.dumps(text, separators=(",", ":")))


def _call(name: str, function: str, *arguments: object) -> list[object]:
    names = [{"$": a} if isinstance(a, str) else a for a in arguments]
    return [name, function, names, {}]


def builtin() -> Iterator[Entry]:
    """Kernels of known routers, at their sizes, and at the largest."""
    logits, taken, plain = _program("x"), _program("s"), _program("g")
    shared = _program("w", _call("w", "operator:truediv", "g", "t"), inputs=("g", "t"))
    sigmoid = _program("y", _call("y", "torch:sigmoid", "x"), inputs=("x",))
    corrected = _program(
        "y", _call("p", "torch:sigmoid", "x"), _call("y", "operator:add", "p", "b0"),
        inputs=("x", "b0"),
    )  # fmt: skip
    fp32, half = torch.float32, torch.bfloat16
    groups = Groups(8, 2, 4, float("-inf"))

    def spec(choices: int, **more: object) -> RouterSpec:
        fields: dict[str, object] = {
            "choices": choices, "captured": 0, "before": logits, "softmax": None,
            "compared": logits, "groups": None, "taken": logits, "top_softmax": None,
            "total": None, "weights": plain, "dtype": fp32,
        }  # fmt: skip
        return RouterSpec(**{**fields, **more})  # type: ignore[arg-type]

    rated = {"softmax": fp32, "compared": taken, "taken": taken}
    limited = {
        "captured": 1, "compared": corrected, "taken": sigmoid, "groups": groups, "total": fp32,
        "weights": shared,
    }  # fmt: skip
    cases = [
        ("softmax, 2 of 8, renormalised", spec(2, **rated, total=fp32, weights=shared), 8, half),
        (
            "softmax, 8 of 128, renormalised",
            spec(8, **rated, total=fp32, weights=shared),
            128,
            half,
        ),
        ("4 of 32, softmax", spec(4, top_softmax=half, dtype=half), 32, half),
        ("groups, 8 of 256, renormalised", spec(8, **limited), 256, fp32),
        ("softmax, 32 of 512", spec(32, **rated), 512, fp32),
        ("groups, 32 of 480, renormalised", spec(32, **limited), 480, fp32),
    ]
    for label, of, experts, dtype in cases:
        layout = layout_of(of, experts, dtype, (fp32,) * of.captured)
        for stage in TEXTS:
            yield Entry(f"{label}, {_name(dtype)}", layout, stage)
