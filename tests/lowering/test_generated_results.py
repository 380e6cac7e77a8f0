"""Generated kernels of norms with several results, and of pairs, in Triton's interpreter or on the
device of `FUSER_DEVICE`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.lowering.norm.generated import catalogue
from fuser.lowering.norm.reference import normalise
from fuser.specs import NormSpec
from tests.lowering.norms import (
    FP32,
    HALF,
    affine_silu,
    check,
    generated,
    itself,
    norm,
    operands,
    outcome,
    permuted,
    row_norm,
    total,
)

WAYS = {"whole": (3, 5, 40), "long": (2, 2, 600), "split": (1, 2, 600)}


def second(n: Tensor, c3: Tensor) -> Tensor:
    return torch.tanh(n) * c3


def alone(n: Tensor) -> Tensor:
    return n


def two(dtype: torch.dtype, **more: Any) -> NormSpec:
    return norm(itself, affine_silu, second, norm_dtype=dtype, dtype=dtype, **more)


@pytest.mark.parametrize("way", WAYS)
def test_two_results(way: str) -> None:
    shape = WAYS[way]
    check(two(FP32), operands(*row_norm(*shape), (shape[0], 1, shape[-1])))


def test_two_results_in_half() -> None:
    check(two(HALF), operands(*row_norm(3, 5, 40), (3, 1, 40), dtype=HALF))


@pytest.mark.parametrize("way", WAYS)
def test_three_results_and_x(way: str) -> None:
    spec = norm(total, affine_silu, second, alone, centred=False, kept=FP32)
    shape = WAYS[way]
    along = (1, 1, shape[-1])
    check(spec, operands(shape, shape, along, along))


def test_results_without_a_gradient() -> None:
    spec, x = two(FP32, kept=FP32), operands(*row_norm(4, 40), (1, 40))
    for wanted in ([0], [1], [2], [0, 2]):
        ours, theirs = (
            torch.autograd.grad([f(spec, x)[i].sin().sum() for i in wanted], x, allow_unused=True)
            for f in (generated, normalise)
        )
        for a, b in zip(ours, theirs, strict=True):
            b = torch.zeros_like(a) if b is None else b
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# -- pairs


def first_member(
    na: Tensor, nb: Tensor, c1a: Tensor, c1b: Tensor, c2a: Tensor, c3: Tensor
) -> Tensor:
    return na * c1a * c2a - nb * c1b * c3


def second_member(
    na: Tensor, nb: Tensor, c1a: Tensor, c1b: Tensor, c2b: Tensor, c3: Tensor
) -> Tensor:
    return torch.tanh(nb * c1b) * c2b + na * c1a * c3


def pairs(**more: Any) -> NormSpec:
    return norm(itself, first_member, second_member, paired=True, **more)


def around(*shape: int) -> list[tuple[int, ...]]:
    """Shapes of x, of a weight, of a table by row, and of a table by row and pair."""
    ones, row, pair = (1,) * (len(shape) - 3), shape[-3], shape[-2]
    return [shape, (*ones, 1, pair, 2), (*ones, row, pair, 2), (*ones, row, pair, 1)]


PAIRS = {"whole": (3, 5, 20, 2), "long": (2, 2, 300, 2), "split": (1, 2, 300, 2)}
ORDERS = [(0, 1, 2, 3), (0, 1, 3, 2), (1, 0, 2, 3)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("way", PAIRS)
def test_pairs(way: str, order: tuple[int, ...]) -> None:
    """Of neighbours, of halves, of heads that come later in memory."""
    x, *rest = operands(*around(*PAIRS[way]))
    ours = check(pairs(), [permuted(x, *order), *rest])
    assert ours.outputs[0].stride() == permuted(x, *order).stride()


@pytest.mark.parametrize("kind", ["centred", "summed", "floor"])
def test_statistics_of_pairs(kind: str) -> None:
    flags = {"centred": kind == "centred", "summed": kind == "summed", "floor": kind == "floor"}
    for way in PAIRS.values():
        check(pairs(**flags), operands(*around(*way)))


def test_pairs_in_half() -> None:
    spec = pairs(norm_dtype=HALF, dtype=HALF, centred=False, kept=HALF)
    check(spec, operands(*around(3, 5, 20, 2), dtype=HALF))


def test_pairs_and_what_was_normalised() -> None:
    spec = norm(
        itself, first_member, second_member, lambda na: na * 2, lambda nb: nb * 2, paired=True,
        kept=FP32,
    )  # fmt: skip
    for way in PAIRS.values():
        check(spec, operands(*around(*way)))


@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_pairs_without_a_norm(order: tuple[int, ...], dtype: torch.dtype) -> None:
    spec = bare(dtype)
    x, *rest = operands(*around(3, 5, 20, 2), dtype=dtype)
    check(spec, [permuted(x, *order), *rest])


def bare(dtype: torch.dtype) -> NormSpec:
    text = pairs(centred=False, norm_dtype=dtype, dtype=dtype).to_text()
    return NormSpec.from_text(text.replace('"paired":true', '"paired":true,"bare":true'))


@pytest.mark.parametrize(
    "given",
    [
        lambda: (pairs(), operands(*around(3, 5, 20, 2))),
        lambda: (pairs(kept=FP32), operands(*around(1, 2, 300, 2))),
        lambda: (bare(FP32), operands(*around(3, 5, 20, 2))),
        lambda: (two(FP32), operands(*row_norm(1, 2, 600), (1, 1, 600))),
    ],
)
def test_entries_are_read_as_they_are_written(given: Callable[[], Any]) -> None:
    spec, x = given()
    with catalogue.recording() as found:
        outcome(generated, spec, x)
    assert found
    for line, entry in found.items():
        again = catalogue.Entry.from_json(line)
        assert again == entry
        assert again.kernels("sm_90") == entry.kernels("sm_90")


def test_opcheck() -> None:
    for spec, x in (
        (pairs(kept=FP32), operands(*around(2, 3, 20, 2))),
        (bare(FP32), operands(*around(2, 3, 20, 2))),
        (two(FP32), operands(*row_norm(2, 40), (1, 40))),
    ):
        text = spec.to_text()
        torch.library.opcheck(torch.ops.fuser.generated_norm.default, (x, text, "", True))
