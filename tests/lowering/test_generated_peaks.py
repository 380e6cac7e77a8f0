"""Generated kernels that look for the largest value of each row, or of groups of it, in Triton's
interpreter or on the device of `FUSER_DEVICE`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fuser.lowering.norm.generated import catalogue
from fuser.lowering.norm.reference import normalise
from fuser.specs import NormSpec
from tests.lowering.generated import program
from tests.lowering.norms import FP32, HALF, generated, itself, norm, operands, permuted, row_norm


def magnitude(n: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
    return (n * c1 + c2).abs()


def quantised(n: Tensor, c1: Tensor, c2: Tensor, p: Tensor) -> Tensor:
    return torch.round((n * c1 + c2) / (p.clamp(min=1e-5) / 127)).clamp(-128, 127).to(torch.int8)


def step(p: Tensor) -> Tensor:
    return p.clamp(min=1e-5).float() / 127


def itself_too(n: Tensor, c1: Tensor) -> Tensor:
    return n * c1


def peaked(
    dtype: torch.dtype, *, inner: int = 1, centred: bool = True, groups: int = 0
) -> NormSpec:
    of = norm(itself, itself_too, inner=inner, norm_dtype=dtype, dtype=dtype, centred=centred)
    return replace(
        of, captured=3, after=(program(quantised), program(step), program(itself_too)),
        dtypes=(torch.int8, FP32, dtype), peak=program(magnitude), by_row=(1,),
        groups=groups,
    )  # fmt: skip


def check(spec: NormSpec, x: Sequence[Tensor]) -> None:
    x = [t.detach() for t in x]
    ours, theirs = generated(spec, x, keep=False), normalise(spec, x)
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    differ = (ours[0].int() - theirs[0].int()).abs()
    assert int(differ.sum()) <= max(1, differ.numel() // 50)
    assert int(differ.max()) <= 1
    coarse = 2e-2 if spec.norm_dtype is HALF else 1e-5
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=coarse, atol=coarse)


@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 40), (7, 128), (1, 500), (19, 1)], ids=str)
def test_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(peaked(dtype), operands(*row_norm(*shape), dtype=dtype))


def test_columns_of_two_dimensions() -> None:
    check(peaked(FP32, inner=2, centred=False), operands((2, 3, 4, 30), *[(1, 3, 4, 1)] * 2))


GROUPED = [
    ((7, 4, 8), (1, 4, 8), 1), ((3, 5, 3, 10), (1, 1, 3, 10), 1), ((5, 2, 3, 4), (1, 1, 3, 4), 2),
    ((6, 1, 9), (1, 1, 9), 1), ((6, 9, 1), (1, 9, 1), 1), ((3, 300), (1, 300), 0),
]  # fmt: skip
"""Sizes of x and of a weight, and how many dimensions count groups."""


@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
@pytest.mark.parametrize(("shape", "along", "groups"), GROUPED, ids=str)
def test_groups(
    shape: tuple[int, ...], along: tuple[int, ...], groups: int, dtype: torch.dtype
) -> None:
    spec = peaked(dtype, inner=groups + 1, groups=groups)
    check(spec, operands(shape, along, along, dtype=dtype))


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 2, 0), (2, 0, 1)], ids=str)
def test_groups_in_any_order_in_memory(order: tuple[int, ...]) -> None:
    x, w, b = operands((6, 4, 8), (1, 4, 8), (1, 4, 8))
    check(peaked(FP32, inner=2, groups=1), [permuted(x, *order), w, b])


def test_no_rows() -> None:
    found = generated(peaked(FP32), [t.detach() for t in operands(*row_norm(0, 40))], keep=False)
    assert [t.shape for t in found] == [(0, 40), (0, 1), (0, 40)]


@pytest.mark.parametrize("groups", [0, 1])
def test_entries_are_read_as_they_are_written(groups: int) -> None:
    x = [t.detach() for t in operands((4, 5, 8), (1, 5, 8), (1, 5, 8))]
    with catalogue.recording() as found:
        generated(peaked(FP32, inner=2, groups=groups), x, keep=False)
    ((line, entry),) = found.items()
    again = catalogue.Entry.from_json(line)
    assert again == entry
    assert again.kernels("sm_90") == entry.kernels("sm_90")
