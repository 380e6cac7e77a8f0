"""What norms and rotations keep for the backward: no more than their gradients read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.derivative import read_by_gradient
from fuser.lowering.norm.generated import launching
from fuser.lowering.triton.trace import Input, trace_gradient
from fuser.specs import NormSpec
from tests.lowering.generated import program
from tests.lowering.norms import (
    FP32,
    HALF,
    affine_silu,
    check,
    generated,
    itself,
    modulated,
    norm,
    operands,
    rotated,
    rotated_back,
    total,
)
from tests.lowering.traffic import traffic


def turned(na: Tensor, nb: Tensor, c1a: Tensor, c2a: Tensor) -> Tensor:
    return (na * c1a - nb * c2a).to(torch.float32)


def turned_back(na: Tensor, nb: Tensor, c1b: Tensor, c2b: Tensor) -> Tensor:
    return nb / c1b + (na * c2b).to(torch.bfloat16)


def chosen(c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return torch.where(c2, c0 * 2.0, -c1)


def lerped(c0: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return torch.lerp(c0, c1, c2)


def alpha(c0: Tensor, c1: Tensor) -> Tensor:
    return torch.add(c0, c1, alpha=0.5) * c0.sigmoid()


PROGRAMS = [
    affine_silu, modulated, rotated, rotated_back, total, turned, turned_back, chosen, lerped,
    alpha,
]  # fmt: skip


@pytest.mark.parametrize("form", PROGRAMS, ids=lambda form: form.__name__)
def test_no_derivative_reads_what_was_not_kept(form: Callable[..., Tensor]) -> None:
    """Whatever is wanted; the traced derivative is autograd's own."""
    p = program(form)
    dtype = {name: torch.bool if (form, name) == (chosen, "c2") else FP32 for name in p.inputs}
    inputs = {name: Input(dtype[name]) for name in p.inputs}
    floats = [name for name in p.inputs if dtype[name] is FP32]
    for names in (*([name] for name in floats), floats):
        graph = trace_gradient(p, inputs, names)
        read = {str(n.target) for n in graph.nodes if n.op == "placeholder" and n.users}
        assert read - {"grad"} <= read_by_gradient(p, names)


def test_rotations_read_angles_alone() -> None:
    assert read_by_gradient(program(rotated), ["na", "nb"]) == {"c1a", "c1b", "c2a", "c3a"}
    assert read_by_gradient(program(turned_back), ["na", "nb"]) == {"c1b", "c2b"}
    assert read_by_gradient(program(turned_back), ["c1b"]) == {"nb", "c1b"}
    assert read_by_gradient(program(total), ["c0", "c1"]) == frozenset()


def rotation(dtype: torch.dtype = FP32, **more: Any) -> NormSpec:
    return norm(itself, turned, turned_back, paired=True, bare=True, centred=False,
                norm_dtype=dtype, dtype=dtype, **more)  # fmt: skip


def angles(dtype: torch.dtype = FP32) -> list[Tensor]:
    """What is rotated, and cosines and sines that want no gradient."""
    x, *tables = operands((4, 48, 32, 2), (1, 48, 32, 2), (1, 48, 32, 2), dtype=dtype)
    return [x, *((t.detach() + 3.0) for t in tables)]


def held(spec: NormSpec, x: list[Tensor]) -> list[Tensor]:
    """What autograd holds of a call."""
    found: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        torch.ops.fuser.norm(x, spec.to_text())
        generated(spec, x)
    return [t for t in found if t.numel() > 1]


@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
def test_what_is_rotated_is_not_kept(dtype: torch.dtype) -> None:
    x = angles(dtype)
    assert {t.data_ptr() for t in held(rotation(dtype), x)} == {t.data_ptr() for t in x[1:]}
    check(rotation(dtype), x)


@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
def test_it_is_kept_where_angles_are_learned(dtype: torch.dtype) -> None:
    x = [t.requires_grad_() for t in angles(dtype)]
    assert {t.data_ptr() for t in held(rotation(dtype), x)} == {t.data_ptr() for t in x}
    check(rotation(dtype), x)


def test_it_is_kept_behind_a_norm() -> None:
    spec = norm(itself, turned, turned_back, paired=True, centred=False)
    x = angles()
    assert x[0].data_ptr() in {t.data_ptr() for t in held(spec, x)}
    check(spec, x)


def test_what_is_added_at_the_end_is_not_kept() -> None:
    """A shift, or a residual; a gradient has the order in memory that its result has."""

    def shifted(n: Tensor, c1: Tensor) -> Tensor:
        return F.silu(n) + c1

    spec = norm(itself, shifted)
    x = operands((6, 40), (6, 40))
    assert x[1].data_ptr() not in {t.data_ptr() for t in held(spec, x)}
    check(spec, x)


def test_the_backward_of_a_rotation_reads_no_queries() -> None:
    """Two large tensors, of which one is the gradient that comes and one that which goes."""
    x = angles()
    (y,) = generated(rotation(), x)
    grad = torch.randn_like(y)
    with traffic(launching, 4 * x[1].numel()) as moved:
        torch.autograd.grad(y, x[0], grad)
    least = 4 * (2 * grad.numel() + 2 * x[1].numel())
    assert 0.99 * least <= moved.bytes <= 1.1 * least, (moved.read, moved.written)
