"""Conversions to floating-point numbers of eight bits: every byte is eager's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fuser.lowering.triton.trace import Input, NotPrintable, trace
from fuser.lowering.triton.values import EIGHTHS
from tests.lowering.emitted import Job, run
from tests.lowering.pointwise_cases import program


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """By a kernel in the interpreter; the size is a power of two."""
    wanted = program(lambda x: x.to(dtype))
    (found,) = run([Job(trace(wanted, {"x": Input(x.dtype)}), {"x": "x"})], {"x": x})
    return found


def numbers(dtype: torch.dtype) -> Tensor:
    """All that a dtype has, what lies halfway between two of them and next to that; what is too
    large, too small, or no number."""
    held = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    held = held[held.isfinite()].unique()
    halves = (held[1:].double() + held[:-1].double()).div(2).float()
    up, down = (torch.nextafter(halves, torch.full_like(halves, s * math.inf)) for s in (1, -1))
    more = [464.0, 464.01, 480.0, 61439.0, 61440.0, 1e30, math.inf, math.nan, 1e-45, 2.0**-17]
    found = torch.cat([held, halves, up, down, torch.tensor([*more, *(-x for x in more), -0.0])])
    return torch.cat([found, torch.randn(2048 - len(found))])


@pytest.mark.parametrize("dtype", EIGHTHS, ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bytes_are_those_of_eager(source: torch.dtype, dtype: torch.dtype) -> None:
    x = numbers(dtype).to(source)
    got, expected = converted(x, dtype), x.to(dtype)
    there = ~x.isnan()
    assert got.view(torch.uint8)[there].tolist() == expected.view(torch.uint8)[there].tolist()
    assert got.float().isnan().tolist() == expected.float().isnan().tolist()


@pytest.mark.parametrize("dtype", EIGHTHS, ids=str)
def test_integers_are_converted_by_way_of_floats(dtype: torch.dtype) -> None:
    x = torch.arange(-512, 512, dtype=torch.int32)
    got = converted(x, dtype)
    assert torch.equal(got.view(torch.uint8), x.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("dtype", EIGHTHS, ids=str)
def test_they_are_not_computed_with(dtype: torch.dtype) -> None:
    wanted = program(lambda x: x.to(dtype).float() + 1.0)
    graph = trace(wanted, {"x": Input(torch.float32)})
    with pytest.raises(NotPrintable, match="only stored"):
        run([Job(graph, {"x": "x"})], {"x": torch.randn(8)})
