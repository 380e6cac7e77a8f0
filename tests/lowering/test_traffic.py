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

from fuser.lowering.norm.generated import launching
from fuser.lowering.triton import launch
from fuser.specs import NormSpec
from tests.lowering.generated import program
from tests.lowering.norms import (
    FP32,
    HALF,
    generated,
    itself,
    modulated,
    modulated_again,
    norm,
    operands,
    permuted,
    rotated,
    rotated_back,
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
    "modulated": (norm(itself, modulated), [(2, 96, 256), (2, 1, 256), (2, 1, 256)], 1),
    "long rows": (norm(itself, by_row), [(16, 2048), (16, 1)], 2),
    "parts of rows": (norm(itself, by_row), [(2, 4096), (2, 1)], 2),
    "modulated twice": (
        norm(itself, modulated, modulated_again), [(96, 256), *[(1, 256)] * 4], 1,
    ),
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
    with traffic(launching, _cached(x)) as moved:
        results = generated(spec, x, keep=False)
    assert 1.0 <= moved.bytes / least(x, results, times) <= MOST, _told(moved)


@pytest.mark.parametrize("name", CASES)
def test_backward(name: str) -> None:
    spec, shapes, times = CASES[name]
    x = operands(*shapes)
    results = generated(spec, x)
    grads = [torch.randn_like(y) for y in results]
    with traffic(launching, _cached(x)) as moved:
        found = torch.autograd.grad(results, x, grads)
    large = max(t.numel() for t in x)
    gradients = [g for g in found if g.numel() == large]
    must = times * sum(_bytes(t) for t in [*x, *grads] if t.numel() == large)
    must += sum(map(_bytes, gradients))
    assert 1.0 <= moved.bytes / must <= MOST, _told(moved)


def test_pairs() -> None:
    """Each member once; the tables of angles, which have no gradient, once for all heads. What lies
    between members is counted by the first of them, but for the very last one."""
    spec = norm(itself, rotated, rotated_back, paired=True, centred=False)
    x = operands((4, 48, 32, 2), (1, 1, 32, 2), *[(1, 48, 32, 2)] * 2)
    x = [*x[:2], *(t.detach() for t in x[2:])]
    with traffic(launching, _cached(x)) as moved:
        (y,) = generated(spec, x)
    must = least(x, [y], 1)
    assert must - 4 * len(x) <= moved.bytes <= MOST * must, _told(moved)
    with traffic(launching, _cached(x)) as moved:
        torch.autograd.grad(y, x[:2], torch.randn_like(y))
    must += _bytes(y)
    assert must - 4 * len(x) <= moved.bytes <= MOST * must, _told(moved)


def as_it_is_c(nc: Tensor) -> Tensor:
    return nc


def as_it_is_d(nd: Tensor) -> Tensor:
    return nd


@pytest.mark.parametrize("bare", [False, True])
def test_sections(bare: bool) -> None:
    """Half of each row is rotated: all of it is read and written once, and tables as well; counted
    as where there are pairs."""
    half = norm(itself, rotated, rotated_back, paired=True, bare=bare, centred=False)
    rest = (program(as_it_is_c), program(as_it_is_d))
    spec = replace(half, after=(*half.after, *rest), sections=2)
    x = operands((4, 48, 16, 2, 2), (1, 1, 16, 1, 2), *[(1, 48, 16, 1, 2)] * 2)
    x = [*x[:2], *(t.detach() for t in x[2:])]
    gaps = 4 * (3 + 1 + 1 + 1)  # the last elements, of other members than the first one
    with traffic(launching, _cached(x)) as moved:
        (y,) = generated(spec, x)
    must = least(x, [y], 1)
    assert must - gaps <= moved.bytes <= MOST * must, _told(moved)
    with traffic(launching, _cached(x)) as moved:
        torch.autograd.grad(y, x[:2], torch.randn_like(y))
    must += _bytes(y)
    assert must - gaps <= moved.bytes <= MOST * must, _told(moved)


def first_of_apart(na: Tensor, nb: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return na * c1 - nb * c2


def second_of_apart(na: Tensor, nb: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return nb * c1 + na * c2


def test_sections_of_a_member() -> None:
    """Two thirds of each row are rotated in halves; of the tables there is one of either half."""
    spec = norm(itself, first_of_apart, second_of_apart, as_it_is_c, centred=False)
    spec = replace(spec, sections=3, dtypes=spec.dtypes[:1], captured=3)
    x = operands((4, 48, 16, 3), *[(1, 48, 16, 1)] * 2)
    x = [x[0], *(t.detach() for t in x[1:])]
    gaps = 4 * 2  # the last elements, of other members than the first one
    with traffic(launching, _cached(x)) as moved:
        (y,) = generated(spec, x)
    must = least(x, [y], 1)
    assert must - 2 * gaps <= moved.bytes <= MOST * must, _told(moved)
    with traffic(launching, _cached(x)) as moved:
        torch.autograd.grad(y, x[:1], torch.randn_like(y))
    must += _bytes(y)
    assert must - 3 * gaps <= moved.bytes <= MOST * must, _told(moved)


def test_queries_and_keys_share_little() -> None:
    """Of two launches the second one reads tables again: for 32 and 8 heads 1/42 of all bytes."""
    spec = norm(itself, rotated, rotated_back, paired=True, centred=False)
    bytes_moved = 0
    for heads in (32, 8):
        x = operands((24, heads, 32, 2), (1, 1, 32, 2), *[(24, 1, 32, 2)] * 2)
        x = [t.detach() for t in x]
        with traffic(launching, _cached(x)) as moved:
            generated(spec, x, keep=False)
        bytes_moved += moved.bytes
    tables = sum(map(_bytes, x[2:]))
    assert bytes_moved <= 1.025 * (bytes_moved - tables)


def test_channels_that_come_last_are_read_as_they_lie() -> None:
    spec = norm(inner=2)
    x = [permuted(operands((2, 4, 8, 64))[0], 0, 3, 1, 2).detach()]
    x += [t.detach() for t in operands((1, 4, 8, 1), (1, 4, 8, 1))]
    with traffic(launching, _cached(x)) as moved:
        results = generated(spec, x, keep=False)
    assert results[0].stride() == x[0].stride()
    assert 1.0 <= moved.bytes / least(x, results, 2) <= MOST, _told(moved)


@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
def test_counts(dtype: torch.dtype) -> None:
    """By hand: 8 rows of 64, a weight, no statistics; the weight once, whoever reads it."""
    spec = norm(itself, lambda n, c1: n * c1, norm_dtype=dtype, dtype=dtype)
    x = [t.detach() for t in operands((8, 64), (1, 64), dtype=dtype)]
    with traffic(launching, 64 * dtype.itemsize) as moved:
        generated(spec, x, keep=False)
    assert moved.read == [{"c0": 512 * dtype.itemsize, "c1": 64 * dtype.itemsize}]
    assert moved.written == [{"y_0": 512 * dtype.itemsize}]


def _told(moved: Traffic) -> str:
    return f"read {moved.read}, written {moved.written}"
