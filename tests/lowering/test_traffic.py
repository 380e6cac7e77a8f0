"""Generated kernels move few more bytes than they must, counted as they run.

What must be moved: every large operand once, twice where a row does not fit into one program, which
has its statistics only then; every result once. In the backward the same, of the gradient too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.lowering.norm.generated import problem
from fuser.lowering.triton import launch
from fuser.specs import NormSpec
from tests.lowering.norms import (
    FP32,
    HALF,
    generated,
    modulated,
    norm,
    operands,
    permuted,
    row_norm,
    scaled,
    total,
)
from tests.lowering.traffic import Traffic, traffic

MOST = 1.1


def by_row(n: Tensor, c1: Tensor) -> Tensor:
    return n * c1


CASES: dict[str, tuple[NormSpec, list[Any], int]] = {
    "layer norm": (norm(), row_norm(160, 256), 1),
    "RMS norm of a residual": (
        norm(total, scaled, centred=False, kept=FP32), [(96, 256), (96, 256), (1, 256)], 1,
    ),
    "modulated": (norm(after=modulated), [(2, 96, 256), (2, 1, 256), (2, 1, 256)], 1),
    "long rows": (norm(after=by_row), [(16, 2048), (16, 1)], 2),
    "parts of rows": (norm(after=by_row), [(2, 4096), (2, 1)], 2),
}  # fmt: skip
"""A spec, shapes, and how often a large operand is read."""


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has many rows, as on a GPU where there are many, so that few add up a weight's share."""
    monkeypatch.setattr(launch, "INTERPRETER", replace(launch.INTERPRETER, processors=1))


def least(x: list[Tensor], results: list[Tensor], times: int) -> int:
    large = max(t.numel() for t in x)
    read = sum(_bytes(t) * (times if t.numel() == large else 1) for t in x)
    return read + sum(map(_bytes, results))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def _cached(x: list[Tensor]) -> int:
    """Weights and modulations, but no operand of the size of the result."""
    return max(map(_bytes, x)) - 1


@pytest.mark.parametrize("name", CASES)
def test_forward(name: str) -> None:
    spec, shapes, times = CASES[name]
    x = [t.detach() for t in operands(*shapes)]
    with traffic(problem, _cached(x)) as moved:
        results = generated(spec, x, keep=False)
    assert 1.0 <= moved.bytes / least(x, results, times) <= MOST, _told(moved)


@pytest.mark.parametrize("name", CASES)
def test_backward(name: str) -> None:
    spec, shapes, times = CASES[name]
    x = operands(*shapes)
    results = generated(spec, x)
    grads = [torch.randn_like(y) for y in results]
    with traffic(problem, _cached(x)) as moved:
        found = torch.autograd.grad(results, x, grads)
    large = max(t.numel() for t in x)
    gradients = [g for g in found if g.numel() == large]
    must = times * sum(_bytes(t) for t in [*x, *grads] if t.numel() == large)
    must += sum(map(_bytes, gradients))
    assert 1.0 <= moved.bytes / must <= MOST, _told(moved)


def test_channels_that_come_last_are_read_as_they_lie() -> None:
    spec = norm(inner=2)
    x = [permuted(operands((2, 4, 8, 64))[0], 0, 3, 1, 2).detach()]
    x += [t.detach() for t in operands((1, 4, 8, 1), (1, 4, 8, 1))]
    with traffic(problem, _cached(x)) as moved:
        results = generated(spec, x, keep=False)
    assert results[0].stride() == x[0].stride()
    assert 1.0 <= moved.bytes / least(x, results, 2) <= MOST, _told(moved)


@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
def test_counts(dtype: torch.dtype) -> None:
    """By hand: 8 rows of 64, a weight, no statistics; the weight once, whoever reads it."""
    spec = norm(after=lambda n, c1: n * c1, norm_dtype=dtype, dtype=dtype)
    x = [t.detach() for t in operands((8, 64), (1, 64), dtype=dtype)]
    with traffic(problem, 64 * dtype.itemsize) as moved:
        generated(spec, x, keep=False)
    assert moved.read == [{"c0": 512 * dtype.itemsize, "c1": 64 * dtype.itemsize}]
    assert moved.written == [{"y": 512 * dtype.itemsize}]


def _told(moved: Traffic) -> str:
    return f"read {moved.read}, written {moved.written}"
