"""Activations of known models, at their sizes: their kernels are always in the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import symbolic_trace

from fuser.graph.program import Program, to_json
from fuser.specs import ActivationSpec

from ...triton.launch import TARGETS
from .catalogue import Entry, recording
from .problem import Problem


@dataclass(frozen=True)
class Workload:
    """An activation and its operands.

    Attributes:
        label: what it is, in words.
        program: of the operands.
        shapes: of the operands, parts first.
        order: of the dimensions of the first operand in memory.
    """

    label: str
    program: Callable[..., Tensor]
    shapes: Sequence[Sequence[int]]
    order: Sequence[int] = ()

    def entries(self, dtype: torch.dtype) -> Iterator[Entry]:
        """The kernels of a step of training."""
        program = Program(to_json(symbolic_trace(self.program).graph))
        spec = ActivationSpec(tuple(s[0] for s in self.shapes), program, dtype)
        captured = [torch.empty(s, dtype=dtype, device="meta") for s in self.shapes]
        if self.order:
            first = torch.empty([self.shapes[0][d] for d in self.order], dtype=dtype, device="meta")
            captured[0] = first.permute([self.order.index(d) for d in range(first.dim())])
        of = Problem(spec, captured, "", TARGETS["sm_90"], False)
        with recording() as found:
            y = of.forward()
            of.backward(torch.empty_like(y), [True] * len(captured))
        name = f"{self.label}, {str(dtype).removeprefix('torch.')}"
        yield from (replace(entry, label=name) for entry in found.values())


def _swiglu(c0: Tensor, c1: Tensor) -> Tensor:
    return F.silu(c0) * c1


def _swiglu_of_halves(c0_0: Tensor, c0_1: Tensor) -> Tensor:
    return F.silu(c0_0) * c0_1


def _geglu(c0_0: Tensor, c0_1: Tensor) -> Tensor:
    return c0_0 * F.gelu(c0_1)


def _clamped(c0_0: Tensor, c0_1: Tensor) -> Tensor:
    """GPT-OSS."""
    gate, up = c0_0.clamp(max=7.0), c0_1.clamp(min=-7.0, max=7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def _biased_gelu(c0: Tensor, c1: Tensor) -> Tensor:
    return F.gelu(c0 + c1, approximate="tanh")


def _dyt(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Zhu et al., "Transformers without Normalization" (2025)."""
    return torch.tanh(c1 * c0) * c2 + c3


def _gated_residual(c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return c0 + c1 * F.silu(c2)


T, D = 16384, 14336
WORKLOADS: Sequence[Workload] = (
    Workload("SwiGLU", _swiglu, ((1, T, D), (1, T, D))),
    Workload("SwiGLU of halves", _swiglu_of_halves, ((2, T, D),), (1, 0, 2)),
    Workload("GEGLU of halves", _geglu, ((2, 4, 4096, 5120),), (1, 2, 0, 3)),
    Workload("clamped SwiGLU in turns", _clamped, ((2, T, 2880),), (1, 2, 0)),
    Workload("biased gelu", _biased_gelu, ((1, T, 3072), (1, 1, 3072))),
    Workload("DyT", _dyt, ((1, T, 4096), (1, 1, 1), (1, 1, 4096), (1, 1, 4096))),
    Workload("gate, residual", _gated_residual,
             ((1, 4, 4608, 3072), (1, 4, 1, 3072), (1, 4, 4608, 3072))),
)  # fmt: skip


def builtin() -> Iterator[Entry]:
    """Kernels of these, forward and backward."""
    for dtype in (torch.bfloat16, torch.float32):
        for workload in WORKLOADS:
            yield from workload.entries(dtype)
