"""Kernels by description: to compile ahead of time what a program, or a suite, would launch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fuser.specs import NormSpec

from ...triton.kernel import Kernel, Numbers
from ...triton.launch import TARGETS
from ...triton.recorder import Recorder
from .backward import Needs
from .build import TEXTS, build
from .config import Sizes, Way, cut
from .layout import Layout

KIND = "norm"


@dataclass(frozen=True)
class Entry:
    """One kernel, whatever the device.

    Attributes:
        label: what it is for, in words.
        layout: what its text is specialised on.
        stage: one of `build.TEXTS`.
        arguments: of the stage.
        sizes: which the config depends on.
        way: how it reads rows.
        numbers: what the JIT would specialise it on.
    """

    label: str
    layout: Layout
    stage: str
    arguments: tuple[Any, ...]
    sizes: Sizes
    way: Way
    numbers: Numbers

    def kernels(self, arch: str) -> list[Kernel]:
        """What would be launched on a device."""
        backward = self.stage.endswith("_backward")
        config = cut(self.layout, self.sizes, TARGETS[arch], self.way, backward=backward)
        kernel = build(self.layout, self.stage, self.arguments, config)
        return [self.numbers.specialised(kernel)]

    def to_json(self) -> str:
        layout = self.layout
        fields = {
            "kind": KIND,
            "label": self.label,
            "spec": layout.spec.to_text(),
            "dtypes": [str(d).removeprefix("torch.") for d in layout.dtypes],
            "rows": [layout.lead, layout.rest],
            "inner": layout.inner,
            "varies": {name: list(own) for name, own in layout.varies},
            "between": layout.between,
            "wide": layout.wide,
            "stage": self.stage,
            "arguments": [
                [a.operands, a.results, a.x_out] if isinstance(a, Needs) else a
                for a in self.arguments
            ],
            "sizes": [self.sizes.rows, self.sizes.rest, self.sizes.inner],
            "way": self.way.value,
            "ones": self.numbers.ones,
            "multiples": self.numbers.multiples,
        }
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Entry:
        data = json.loads(line)
        lead, rest = data["rows"]
        layout = Layout(
            NormSpec.from_text(data["spec"]),
            tuple(getattr(torch, d) for d in data["dtypes"]),
            lead,
            rest,
            tuple(data["inner"]),
            tuple((name, tuple(own)) for name, own in data["varies"].items()),
            data["between"],
            data["wide"],
        )
        if data["stage"] not in TEXTS:
            raise ValueError(f"a norm has no stage {data['stage']!r}")
        arguments = tuple(
            Needs(tuple(a[0]), tuple(a[1]), a[2]) if isinstance(a, list) else a
            for a in data["arguments"]
        )
        rows, each, inner = data["sizes"]
        return Entry(
            data["label"], layout, data["stage"], arguments, Sizes(rows, each, tuple(inner)),
            Way(data["way"]), Numbers(tuple(data["ones"]), tuple(data["multiples"])),
        )  # fmt: skip


_recorder = Recorder[Entry]()
recording = _recorder.recording


def record(
    layout: Layout,
    stage: str,
    arguments: tuple[Any, ...],
    sizes: Sizes,
    way: Way,
    values: Mapping[str, Any],
) -> None:
    """Notes a launch, where that is wanted."""
    if not _recorder.listens:
        return
    label = " | ".join(map(str, (layout.spec.before, *layout.spec.after)))
    _recorder.note(Entry(label, layout, stage, arguments, sizes, way, Numbers.of(values)))
