"""Specs of activations with random operands, and what operators make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.program import Program
from fuser.lowering.activation.reference import activate
from fuser.specs import ActivationSpec
from tests.compiled import Run, assert_near, wide
from tests.lowering.generated import DEVICE, FACTOR, program

FP32, HALF = torch.float32, torch.bfloat16


def swiglu(c0: Tensor, c1: Tensor) -> Tensor:
    return F.silu(c0) * c1


def halves(c0_0: Tensor, c0_1: Tensor) -> Tensor:
    return F.silu(c0_0) * c0_1


def clamped(c0_0: Tensor, c0_1: Tensor) -> Tensor:
    gate, up = c0_0.clamp(max=1.5), c0_1.clamp(min=-1.5, max=1.5)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def biased(c0: Tensor, c1: Tensor) -> Tensor:
    return F.gelu(c0 + c1, approximate="tanh")


def dyt(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    return torch.tanh(c1 * c0) * c2 + c3


def residual(c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return c0 + c1 * F.silu(c2)


def biased_halves(c0_0: Tensor, c0_1: Tensor, c1_0: Tensor, c1_1: Tensor) -> Tensor:
    return F.gelu(c0_0 + c1_0) * (c0_1 + c1_1)


def by_row(c0: Tensor, c1: Tensor) -> Tensor:
    return torch.tanh(c0) * c1


def activation(
    function: Callable[..., Tensor], *parts: int, dtype: torch.dtype = FP32
) -> ActivationSpec:
    """A spec whose program is this function, of operands with so many parts."""
    return ActivationSpec(parts, program(function), dtype)


def operands(*shapes: Sequence[int], dtype: torch.dtype = FP32) -> list[Tensor]:
    """Gaussian ones that want a gradient."""
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [t.to(DEVICE, dtype).requires_grad_() for t in made]


def ordered(t: Tensor, *order: int) -> Tensor:
    """The same numbers, in another order in memory, the slowest dimension first."""
    back = [order.index(d) for d in range(len(order))]
    return t.detach().permute(order).contiguous().permute(back).requires_grad_()


def generated(spec: ActivationSpec, x: Sequence[Tensor]) -> Tensor:
    return torch.ops.fuser.generated_activation(list(x), spec.to_text(), "a test")


def in_fp64(spec: ActivationSpec) -> ActivationSpec:
    """Nothing is rounded."""
    text = spec.program.widened().text
    wider = Program(text.replace('{"dtype":"float32"}', '{"dtype":"float64"}'))
    return replace(spec, program=wider, dtype=torch.float64)


def outcome(
    function: Callable[[ActivationSpec, Sequence[Tensor]], Tensor],
    spec: ActivationSpec,
    x: Sequence[Tensor],
) -> Run:
    """The result, and the gradients of everything that requires one."""
    y = function(spec, x)
    cotangent = torch.linspace(-1.0, 1.5, y.numel(), device=y.device).sin().reshape(y.shape).to(y)
    leaves = [t for t in x if t.requires_grad]
    grads = torch.autograd.grad(y, leaves, cotangent) if leaves else ()
    return Run([y.detach()], list(grads))


def check(spec: ActivationSpec, x: Sequence[Tensor]) -> Run:
    """As near to fp64 as the plain program: the result, and gradients of everything."""
    ours = outcome(generated, spec, x)
    exact = outcome(activate, in_fp64(spec), wide(list(x)))
    assert_near(ours, outcome(activate, spec, x), exact, factor=FACTOR)
    return ours
