"""The norms that are benchmarked: their kernels are always in the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import symbolic_trace

from fuser.graph.program import Program, to_json
from fuser.specs import NormSpec

from ...triton.launch import TARGETS
from .catalogue import Entry, recording
from .problem import Problem, Statistics
from .run import backward, forward


@dataclass(frozen=True)
class Workload:
    """A norm and its operands.

    Attributes:
        label: what it is, in words.
        before, after: programs.
        shapes: of the operands, the first of the shape of the result.
        inner: how many of the last dimensions are normalised.
        centred: its mean is taken away.
        kept: x is a result too.
        order: of the dimensions of the first operand in memory.
    """

    label: str
    before: Callable[..., Tensor]
    after: Callable[..., Tensor]
    shapes: Sequence[Sequence[int]]
    inner: int = 1
    centred: bool = True
    kept: bool = False
    order: Sequence[int] = ()

    def entries(self, dtype: torch.dtype) -> Iterator[Entry]:
        """The kernels of a step of training."""
        x = NormSpec(
            len(self.shapes), self.inner, _program(self.before), _program(self.after),
            self.centred, False, False, 1e-5, torch.float32, dtype,
            dtype if self.kept else None,
        )  # fmt: skip
        captured = [torch.empty(s, dtype=dtype, device="meta") for s in self.shapes]
        if self.order:
            first = torch.empty([self.shapes[0][d] for d in self.order], dtype=dtype, device="meta")
            captured[0] = first.permute([self.order.index(d) for d in range(first.dim())])
        of = Problem(x, captured, tuple(self.shapes[0]), "", TARGETS["sm_90"], False)
        with recording() as found:
            y, kept, *saved = forward(of, keep=True)
            grads = [y, kept] if self.kept else [y]
            backward(of, grads, Statistics(*saved), [True] * len(captured))
        name = f"{self.label}, {str(dtype).removeprefix('torch.')}"
        yield from (replace(entry, label=name) for entry in found.values())


def _program(function: Callable[..., Any]) -> Program:
    return Program(to_json(symbolic_trace(function).graph))


def _itself(c0: Tensor) -> Tensor:
    return c0


def _sum(c0: Tensor, c1: Tensor) -> Tensor:
    return c0 + c1


def _scaled(n: Tensor, c1: Tensor) -> Tensor:
    return n * c1.float()


def _affine(n: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return n * c1.float() + c2.float()


def _activated(n: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return F.silu(n * c1.float() + c2.float())


def _second(n: Tensor, c2: Tensor) -> Tensor:
    return n * c2.float()


def _modulated(n: Tensor, c3: Tensor, c4: Tensor) -> Tensor:
    return n * (1 + c3) + c4


def _gated(c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return c0 + c1 * c2


WORKLOADS = (
    Workload("RMS norm of a residual", _sum, _second,
             ((16384, 4096), (16384, 4096), (1, 4096)), centred=False, kept=True),
    Workload("layer norm", _itself, _affine, ((32768, 4096), (1, 4096), (1, 4096))),
    Workload("RMS norm of long rows", _itself, _scaled, ((131072, 16384), (1, 16384)),
             centred=False),
    Workload("group norm, SiLU, 5-D", _itself, _activated,
             ((1, 32, 4, 20 * 256 * 256), (1, 32, 4, 1), (1, 32, 4, 1)), inner=2),
    Workload("group norm, SiLU, channels_last", _itself, _activated,
             ((1, 32, 4, 1024 * 1024), (1, 32, 4, 1), (1, 32, 4, 1)), inner=2,
             order=(0, 3, 1, 2)),
    Workload("group norm, SiLU, many images", _itself, _activated,
             ((16, 32, 10, 128 * 128), (1, 32, 10, 1), (1, 32, 10, 1)), inner=2),
    Workload("norm of queries and keys", _itself, _scaled,
             ((1, 24, 4608, 128), (1, 1, 1, 128)), centred=False, order=(0, 2, 1, 3)),
    Workload("gate, residual, layer norm, modulate", _gated, _modulated,
             ((4, 4608, 3072), (4, 4608, 3072), (4, 1, 3072), (4, 1, 3072), (4, 1, 3072)),
             kept=True),
)  # fmt: skip


def builtin() -> Iterator[Entry]:
    """Kernels of the benchmarked norms, forward and backward."""
    for dtype in (torch.bfloat16, torch.float32):
        for workload in WORKLOADS:
            yield from workload.entries(dtype)
