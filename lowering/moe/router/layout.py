"""What the kernels of a router are specialised on, and which routers have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from fuser.graph.program import Program
from fuser.specs import RouterSpec
from fuser.torch_private import differentiable, eager_world

from ...triton.kernel import NoKernel
from ...triton.trace import Input, trace

MOST_EXPERTS, MOST_CHOICES = 512, 32
"""What the registers of a warp hold."""
ELEMENTS = 256
"""Scores that a program looks at, at least."""


@dataclass(frozen=True)
class Layout:
    """Everything that the text of the kernels depends on.

    Attributes:
        experts: how many there are.
        logits: their dtype.
        captured: dtypes of the captured tensors.
    """

    spec: RouterSpec
    experts: int
    logits: torch.dtype
    captured: tuple[torch.dtype, ...]

    @property
    def members(self) -> int:
        """Experts of a group; all, where there are no groups."""
        return self.experts // (self.spec.groups.count if self.spec.groups else 1)

    @property
    def inputs(self) -> dict[str, Input]:
        """Of programs: logits, scores, captured tensors."""
        scores = self.spec.softmax or self.logits
        captured = {f"b{i}": Input(dtype) for i, dtype in enumerate(self.captured)}
        return {"x": Input(self.logits), "s": Input(scores), **captured}

    @property
    def weighed(self) -> dict[str, Input]:
        """Of the program of weights."""
        given = self.spec.top_softmax or result_dtype(self.spec.taken, self.inputs)
        return {"g": Input(given), "t": Input(self.spec.total or given)}


def read(program: Program, inputs: dict[str, Input]) -> dict[str, Input]:
    """Those inputs that a program has."""
    return {name: inputs[name] for name in program.inputs}


def result_dtype(program: Program, inputs: dict[str, Input]) -> torch.dtype:
    """What eager gives."""
    graph = trace(program, read(program, inputs))
    found = next(n for n in graph.nodes if n.op == "output").args[0]
    return found.meta["val"].dtype  # type: ignore[union-attr]


@lru_cache(maxsize=1024)
def layout_of(
    spec: RouterSpec, experts: int, logits: torch.dtype, captured: Sequence[torch.dtype]
) -> Layout:
    """The layout of a router.

    Raises:
        NoKernel: there are no kernels for it.
    """
    if experts > MOST_EXPERTS:
        raise NoKernel(f"there are more than {MOST_EXPERTS} experts")
    if spec.choices > MOST_CHOICES:
        raise NoKernel(f"more than {MOST_CHOICES} experts are chosen for a token")
    layout = Layout(spec, experts, logits, tuple(captured))
    with eager_world(), differentiable():
        compared = result_dtype(spec.compared, layout.inputs)
    for dtype in (logits, compared, spec.dtype):
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise NoKernel(f"a part of it is {str(dtype)[6:]}")
    return layout
