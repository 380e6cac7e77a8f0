"""Arithmetic on positions is that of eager: in 64 bits wherever 32 might not do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fuser.lowering.attention.generated.integers import FEW, MOST, exceeds
from fuser.lowering.triton.trace import Input
from tests.compiled import assert_near, compiled, run, wide
from tests.lowering.generated import INTERPRETED
from tests.lowering.pointwise_cases import program

COUNTED = {"iq": Input(torch.int64), "ik": Input(torch.int64)}
NARROW: dict[str, Callable[..., Tensor]] = {
    "difference": lambda iq, ik: iq - ik,
    "weighed": lambda iq, ik: (iq - 3 * ik).abs() // 7,
    "remainder": lambda iq, ik: (iq % 7) << 3,
    "bits": lambda iq, ik: (iq ^ ik) & 15,
    "clamped": lambda iq, ik: (iq - ik).abs().clamp(max=128) * 1000,
    "chosen": lambda iq, ik: torch.where(iq < ik, iq, -ik),
    "in floats": lambda iq, ik: (iq - ik).float() ** 3,
    "compared": lambda iq, ik: iq + 1_000_000_000 > ik,
}
SQUARES: dict[str, Callable[..., Tensor]] = {
    "square": lambda iq, ik: (iq - ik) ** 2,
    "product": lambda iq, ik: (iq - ik) * (iq - ik),
}
WIDE: dict[str, Callable[..., Tensor]] = {
    "cube": lambda iq, ik: (iq - ik) ** 3,
    "far": lambda iq, ik: iq * 3_000_000_000 % 7,
    "shift": lambda iq, ik: 1 << (ik + 30),
    "power": lambda iq, ik: 2**ik,
    "compared": lambda iq, ik: iq > 5_000_000_000,
    "sum": lambda iq, ik: iq + 2_147_483_000 + ik,
}


@pytest.mark.parametrize("name", NARROW)
def test_what_fits_is_counted_in_32_bits(name: str) -> None:
    assert not exceeds(program(NARROW[name]), COUNTED, MOST)


@pytest.mark.parametrize("name", SQUARES)
def test_squares_fit_where_dimensions_are_short(name: str) -> None:
    assert not exceeds(program(SQUARES[name]), COUNTED, FEW)
    assert exceeds(program(SQUARES[name]), COUNTED, MOST)


@pytest.mark.parametrize("name", WIDE)
def test_what_may_not_fit_is_counted_in_64_bits(name: str) -> None:
    assert exceeds(program(WIDE[name]), COUNTED, FEW)


def test_data_of_64_bits_stay_as_they_are() -> None:
    inputs = {"iq": Input(torch.int64), "c0": Input(torch.int64)}
    assert not exceeds(program(lambda iq, c0: (iq + c0) * c0 > 7_000_000_000), inputs, MOST)
    inputs["c0"] = Input(torch.int64, is_scalar=True)
    assert exceeds(program(lambda iq, c0: iq + c0), inputs, FEW)
    inputs["c0"] = Input(torch.int32)
    assert exceeds(program(lambda iq, c0: iq + c0), inputs, FEW)
    inputs["c0"] = Input(torch.int16)
    assert not exceeds(program(lambda iq, c0: iq * c0), inputs, FEW)


def test_a_narrow_cast_wraps_as_it_does_in_eager() -> None:
    """And what is made of it is of the dtype of the cast."""
    found = program(lambda iq, ik: (iq * 5).to(torch.int16) * 100)
    assert not exceeds(found, COUNTED, FEW)


# -- in kernels


def bias(q: Tensor, k: Tensor) -> Tensor:
    """Distances."""
    return torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])


def cubic(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT - (bias(q, k) ** 3).float() * 1e-9).softmax(-1) @ v


def by_powers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    at = torch.arange(k.shape[-2])
    return (q @ k.mT - ((1 << (at % 40)) >> 30).float() * 0.01).softmax(-1) @ v


def beyond(fill: float) -> Callable[..., Tensor]:
    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        far = torch.arange(k.shape[-2]) * 1_000_000_000 > 5_000_000_000
        return (q @ k.mT).masked_fill(far, fill).softmax(-1) @ v

    return masked


@INTERPRETED
@pytest.mark.parametrize(
    ("fn", "keys"),
    [(cubic, 1400), (by_powers, 70), (beyond(-9.0), 21), (beyond(-math.inf), 21)],
    ids=["cube", "powers", "finite fill", "infinite fill"],
)
def test_positions_beyond_32_bits(fn: Callable[..., Tensor], keys: int) -> None:
    args = [torch.randn(1, 1, n, 8, requires_grad=True) for n in (3, keys, keys)]
    ours = compiled(fn, args, grad=True, **{"fuser.lowering": "triton"})
    assert ours.rewrites() == 1
    assert_near(ours, run(fn, args, grad=True), run(fn, wide(args), grad=True))


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": torch.round,
    "scaled": lambda s: (s * 0.35).round(),
    "sign": lambda s: s.sign() + s.floor(),
    "beside a step": lambda s: s.trunc() + 0.1 * s,
}


@INTERPRETED
@pytest.mark.parametrize("name", STEPS)
def test_scores_of_steps_have_no_gradient(name: str) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return (STEPS[name](q @ k.mT) + b).softmax(-1) @ v

    args = [torch.randn(1, 2, 21, 8, requires_grad=True) for _ in range(3)]
    args.append(torch.randn(21, 21, requires_grad=True))
    ours = compiled(fn, args, grad=True, **{"fuser.lowering": "triton"})
    assert ours.rewrites() == 1
    assert_near(ours, run(fn, args, grad=True), run(fn, wide(args), grad=True))
