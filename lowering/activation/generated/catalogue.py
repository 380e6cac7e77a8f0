"""Kernels by description: to compile ahead of time what a program, or a suite, would launch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuser.specs import ActivationSpec

from ...triton.kernel import Kernel, Numbers
from ...triton.launch import TARGETS
from ...triton.recorder import Recorder
from .config import Sizes, cut
from .kernels import TEXTS, build
from .layout import Layout

KIND = "activation"


@dataclass(frozen=True)
class Entry:
    """One kernel, whatever the device.

    Attributes:
        label: what it is for, in words.
        layout: what its text is specialised on.
        stage: one of `kernels.TEXTS`.
        arguments: of the stage.
        sizes: which the config depends on.
        numbers: what the JIT would specialise it on.
    """

    label: str
    layout: Layout
    stage: str
    arguments: tuple[Any, ...]
    sizes: Sizes
    numbers: Numbers

    def kernels(self, arch: str) -> list[Kernel]:
        """What would be launched on a device."""
        config = cut(self.sizes, TARGETS[arch])
        kernel = build(self.layout, self.stage, self.arguments, config)
        return [self.numbers.specialised(kernel)]

    def to_json(self) -> str:
        layout, sizes = self.layout, self.sizes
        fields = {
            "kind": KIND,
            "label": self.label,
            "spec": layout.spec.to_text(),
            "dtypes": [str(d).removeprefix("torch.") for d in layout.dtypes],
            "rows": [layout.lead, layout.rest],
            "columns": layout.columns,
            "varies": {name: list(own) for name, own in layout.varies},
            "wide": layout.wide,
            "paired": layout.paired,
            "stage": self.stage,
            "arguments": self.arguments,
            "sizes": [sizes.lead, sizes.rest, sizes.columns],
            "ones": self.numbers.ones,
            "multiples": self.numbers.multiples,
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Entry:
        data = json.loads(line)
        layout = Layout(
            ActivationSpec.from_text(data["spec"]),
            tuple(getattr(torch, d) for d in data["dtypes"]),
            data["rows"][0],
            data["rows"][1],
            data["columns"],
            tuple((name, tuple(own)) for name, own in data["varies"].items()),
            data["wide"],
            tuple(data["paired"]),
        )
        if data["stage"] not in TEXTS:
            raise ValueError(f"an activation has no stage {data['stage']!r}")
        arguments = tuple(tuple(a) for a in data["arguments"])
        return Entry(
            data["label"], layout, data["stage"], arguments, Sizes(*data["sizes"]),
            Numbers(tuple(data["ones"]), tuple(data["multiples"])),
        )  # fmt: skip


_recorder = Recorder[Entry]()
recording = _recorder.recording


def record(
    layout: Layout,
    stage: str,
    arguments: tuple[Any, ...],
    sizes: Sizes,
    values: Mapping[str, Any],
) -> None:
    """Notes a launch, where that is wanted."""
    if not _recorder.listens:
        return
    label = str(layout.spec.program)
    _recorder.note(Entry(label, layout, stage, arguments, sizes, Numbers.of(values)))
