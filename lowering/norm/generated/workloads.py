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
        before: program.
        after: programs, by result and, in pairs, by member.
        shapes: of the operands, the first of the shape of the result.
        inner: how many of the last dimensions are normalised.
        centred: its mean is taken away.
        kept: x is a result too.
        order: of the dimensions of the first operand in memory.
        paired, bare, peak, groups: as a spec has them.
    """

    label: str
    before: Callable[..., Tensor]
    after: Callable[..., Tensor] | tuple[Callable[..., Tensor], ...]
    shapes: Sequence[Sequence[int]]
    inner: int = 1
    centred: bool = True
    kept: bool = False
    order: Sequence[int] = ()
    paired: bool = False
    bare: bool = False
    peak: Callable[..., Tensor] | None = None
    groups: int = 0

    def entries(self, dtype: torch.dtype) -> Iterator[Entry]:
        """The kernels of a step of training."""
        after = self.after if isinstance(self.after, tuple) else (self.after,)
        programs = tuple(map(_program, after))
        dtypes = (dtype,) * (len(after) // (2 if self.paired else 1))
        dtypes = (torch.int8, torch.float32) if self.peak else dtypes
        x = NormSpec(
            len(self.shapes), self.inner, _program(self.before), programs, self.centred, False,
            False, 1e-5, torch.float32, dtypes, dtype if self.kept else None, self.paired,
            self.bare, _program(self.peak) if self.peak else None, (1,) if self.peak else (),
            self.groups,
        )  # fmt: skip
        captured = [torch.empty(s, dtype=dtype, device="meta") for s in self.shapes]
        if self.order:
            first = torch.empty([self.shapes[0][d] for d in self.order], dtype=dtype, device="meta")
            captured[0] = first.permute([self.order.index(d) for d in range(first.dim())])
        shape = tuple(self.shapes[0][:-1] if self.paired else self.shapes[0])
        of = Problem(x, captured, shape, "", TARGETS["sm_90"], False)
        with recording() as found:
            *results, means, lows, scales = forward(of, keep=self.peak is None)
            grads = dict(enumerate(results))
            if self.peak is None:
                backward(of, grads, Statistics(means, lows, scales), [True] * len(captured))
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


def _modulated_again(n: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return n * (1 + c1) + c2


def _rotated(na: Tensor, nb: Tensor, c1a: Tensor, c1b: Tensor, c2a: Tensor, c3a: Tensor) -> Tensor:
    return na * c1a.float() * c2a - nb * c1b.float() * c3a


def _rotated_back(
    na: Tensor, nb: Tensor, c1a: Tensor, c1b: Tensor, c2b: Tensor, c3b: Tensor
) -> Tensor:
    return nb * c1b.float() * c2b + na * c1a.float() * c3b


def _gated_activation(c0: Tensor, c1: Tensor) -> Tensor:
    return F.silu(c0) * c1


def _size(n: Tensor) -> Tensor:
    return n.abs()


def _scaled_down(n: Tensor, p: Tensor) -> Tensor:
    return torch.round(n / (p.clamp(min=1e-5) / 127)).clamp(-128, 127).to(torch.int8)


def _turned(na: Tensor, nb: Tensor, c1a: Tensor, c2a: Tensor) -> Tensor:
    return na * c1a - nb * c2a


def _turned_back(na: Tensor, nb: Tensor, c1b: Tensor, c2b: Tensor) -> Tensor:
    return nb * c1b + na * c2b


def _magnitude(n: Tensor, c1: Tensor) -> Tensor:
    return (n * c1.float()).abs()


def _quantised(n: Tensor, c1: Tensor, p: Tensor) -> Tensor:
    scale = p.clamp(min=1e-5) / 127
    return torch.round(n * c1.float() / scale).clamp(-128, 127).to(torch.int8)


def _step(p: Tensor) -> Tensor:
    return p.clamp(min=1e-5) / 127


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
    Workload("layer norm, modulated twice", _itself, (_modulated_again, _modulated),
             ((4, 4608, 3072), *[(4, 1, 3072)] * 4)),
    Workload("norm of queries, rotated in halves", _itself, (_rotated, _rotated_back),
             ((1, 32, 4608, 64, 2), (1, 1, 1, 64, 2), *[(1, 1, 4608, 64, 2)] * 2),
             centred=False, order=(0, 2, 1, 4, 3), paired=True),
    Workload("norm of queries, rotated in neighbours", _itself, (_rotated, _rotated_back),
             ((1, 24, 4608, 64, 2), (1, 1, 1, 64, 2), *[(1, 1, 4608, 64, 2)] * 2),
             centred=False, order=(0, 2, 1, 3, 4), paired=True),
    Workload("RMS norm, quantised by row", _itself, (_quantised, _step),
             ((16384, 4096), (1, 4096)), centred=False, peak=_magnitude),
    Workload("RMS norm, quantised by group", _itself, (_quantised, _step),
             ((16384, 32, 128), (1, 32, 128)), inner=2, centred=False, peak=_magnitude, groups=1),
    Workload("SwiGLU, quantised by row", _gated_activation, (_scaled_down, _step),
             ((16384, 14336), (16384, 14336)), peak=_size, bare=True),
    Workload("SwiGLU, quantised by group", _gated_activation, (_scaled_down, _step),
             ((16384 * 112, 128), (16384 * 112, 128)), peak=_size, bare=True),
    Workload("rotation of queries, in halves", _itself, (_turned, _turned_back),
             ((1, 32, 4608, 64, 2), *[(1, 1, 4608, 64, 2)] * 2),
             centred=False, order=(0, 2, 1, 4, 3), paired=True, bare=True),
)  # fmt: skip


def builtin() -> Iterator[Entry]:
    """Kernels of the benchmarked norms, forward and backward."""
    for dtype in (torch.bfloat16, torch.float32):
        for workload in WORKLOADS:
            yield from workload.entries(dtype)
