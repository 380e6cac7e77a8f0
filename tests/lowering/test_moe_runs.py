"""Operators of mixtures on rows that come in runs: each against experts one after the other.

Generated kernels in one dtype of a kind; `FUSER_EVERY=1` takes all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.lowering.moe.library import library_moe
from fuser.specs import MoeSpec
from tests.compiled import Run, assert_near
from tests.every import EVERY
from tests.lowering.generated import FACTOR
from tests.lowering.mixtures import Operands, clamped, in_fp64, in_runs, outcome, swiglu


def generated(*operands: Any, keep: bool = True) -> Tensor:
    return torch.ops.fuser.generated_moe(*operands, "a test", keep)[0]


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "reference": torch.ops.fuser.moe,
    "aten": torch.ops.fuser.grouped_moe,
    "triton": generated,
}
COUNTS = (9, 0, 21, 3)


def in_turn(x: Tensor, ends: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    """Experts one after the other, a later one replacing what an earlier one gave."""
    matrices, biases, text = rest
    spec = MoeSpec.from_text(text)
    out, start = x.new_zeros(len(x), matrices[-1].shape[-2]), 0
    for e, end in enumerate(ends.tolist()):
        own = slice(start, end)
        rows = x[own] * weights[own] if spec.weights_first else x[own]
        ms, bs = ([t[e :: spec.experts][0] if spec.separate else t[e] for t in ts] for ts in (
            _by_product(spec, matrices), _by_product(spec, biases)
        ))  # fmt: skip
        first = [F.linear(rows, m, b) for m, b in zip(ms[:-1], bs or [None] * 9, strict=False)]
        parts = [first[c.product][:, c.start : c.stop : c.step] for c in spec.columns]
        hidden = spec.activation(**{f"h{i}": part for i, part in enumerate(parts)})
        y = F.linear(hidden, ms[-1], bs[-1] if bs else None)
        y = y if spec.weights_first else y * weights[own]
        out = torch.cat([out[:start], y, out[start + len(y) :]])
        start = end
    return out.to(spec.dtype)


def _by_product(spec: MoeSpec, tensors: Sequence[Tensor]) -> list[Any]:
    each = spec.experts if spec.separate else 1
    groups = [tensors[i : i + each] for i in range(0, len(tensors), each)]
    return [*groups] if spec.separate else [group[0] for group in groups]


def check(spec: MoeSpec, x: Operands, operator: Callable[..., Tensor]) -> Run:
    ours = outcome(operator, spec, x)
    exact = outcome(in_turn, in_fp64(spec), x.wide())
    assert_near(ours, outcome(in_turn, spec, x), exact, factor=FACTOR)
    return ours


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"extra": 7},
    "first": {"biases": True, "first": True},
    "separate": {"separate": True, "products": 2, "extra": 1},
    "pairs": {"activation": clamped, "in_pairs": True, "biases": True, "extra": 20},
}
CASES = [
    (name, kind, dtype)
    for i, kind in enumerate(KINDS)
    for j, dtype in enumerate([torch.float32, torch.bfloat16])
    for name in OPERATORS
    if EVERY or name != "triton" or i % 2 == j
]


@pytest.mark.parametrize(("name", "kind", "dtype"), CASES, ids=str)
def test_kinds(name: str, kind: str, dtype: torch.dtype) -> None:
    spec, x = in_runs(COUNTS, dtype=dtype, **KINDS[kind])
    ours = check(spec, x, OPERATORS[name])
    behind = slice(sum(COUNTS), None)
    assert not ours.outputs[0][behind].any()
    for grad in ours.grads[:2]:  # of rows and of their weights
        assert grad is not None
        assert not grad[behind].any()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("counts", "extra"),
    [((0, 0, 0), 0), ((0, 0, 0), 5), ((1, 0, 0), 0), ((0, 0, 40), 0), ((70, 1), 2)],
    ids=str,
)
def test_lengths(counts: tuple[int, ...], extra: int, name: str) -> None:
    check(*in_runs(counts, extra, biases=True), OPERATORS[name])


@pytest.mark.parametrize("name", ["reference", "aten"])
@pytest.mark.parametrize("ends", [(8, 3, 10), (20, 4, 12), (99, 0, 5), (5, 5, 99)], ids=str)
def test_ends_that_decrease_or_are_too_large(ends: tuple[int, ...], name: str) -> None:
    spec, x = in_runs((4, 4, 4))
    x = replace(x, indices=torch.tensor(ends))
    operands = (x.x, x.indices, x.weights, x.matrices, x.biases, spec.to_text())
    with torch.no_grad():
        torch.testing.assert_close(OPERATORS[name](*operands), in_turn(*operands))


@pytest.mark.parametrize("name", OPERATORS)
def test_ends_of_another_dtype(name: str) -> None:
    spec, x = in_runs(COUNTS)
    check(spec, replace(x, indices=x.indices.long()), OPERATORS[name])


def test_first_products_are_computed_again_where_they_were_not_kept() -> None:
    check(*in_runs(COUNTS, 4, biases=True), partial(generated, keep=False))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_row_that_is_no_number_stays_with_itself(name: str) -> None:
    """Behind the runs it is nobody's; in one it is in its row, and in its expert's gradients."""
    number = torch.nan
    spec, x = in_runs(COUNTS, 3)
    rows = x.x.detach().clone()
    rows[-1], rows[2] = number, number
    ours = outcome(OPERATORS[name], spec, replace(x, x=rows.requires_grad_()))
    finite = ours.outputs[0].isfinite().all(1)
    assert finite.tolist() == [row != 2 for row in range(len(rows))]
    for grad in ours.grads[2:]:
        assert grad is not None
        assert grad[1:].isfinite().all()


@pytest.mark.parametrize("biases", [False, True])
def test_grouped_products_of_the_library(biases: bool) -> None:
    """bf16, with sizes that it takes."""
    sizes = {"features": 32, "hidden": 16, "width": 24}
    check(*in_runs(COUNTS, 8, dtype=torch.bfloat16, biases=biases, **sizes), library_moe)


def test_opcheck() -> None:
    spec, x = in_runs((3, 0, 2), biases=True)  # what is saved of rows of nobody is anything
    operands = (x.x, x.indices, x.weights, x.matrices, x.biases, spec.to_text())
    fake = ("test_schema", "test_faketensor")
    given = (*operands, "", True)
    torch.library.opcheck(torch.ops.fuser.generated_moe.default, given, test_utils=fake)


def test_a_spec_is_read_as_it_is_written() -> None:
    spec, _ = in_runs(COUNTS, activation=swiglu)
    assert MoeSpec.from_text(spec.to_text()) == spec
    assert spec.runs
