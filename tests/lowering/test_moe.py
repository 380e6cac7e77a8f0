"""The operators of mixtures: the sorted one against the oracle, and both against torch's checks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.graph.program import Program, ProgramBuilder
from fuser.specs import Columns, MoeSpec
from tests.compiled import TOLERANCES

EXPERTS, CHOICES, FEATURES, HIDDEN = 5, 2, 6, 8


def reference(*args: Any) -> Tensor:
    return torch.ops.fuser.moe(*args)


def grouped(*args: Any) -> Tensor:
    return torch.ops.fuser.grouped_moe(*args)


OPERATORS = (reference, grouped)


def gated() -> Program:
    builder = ProgramBuilder()
    gate, up = builder.input("h0"), builder.input("h1")
    return builder.finish(builder.call(torch.mul, builder.call(F.silu, gate), up))


def operands(
    tokens: int, dtype: torch.dtype, *, separate: bool, first: bool, out: int = FEATURES
) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(tokens)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    shapes = [(2 * HIDDEN, FEATURES), (out, HIDDEN)]
    if separate:
        matrices = [made(*shape) for shape in shapes for _ in range(EXPERTS)]
        biases = [made(shape[0]) for shape in shapes for _ in range(EXPERTS)]
    else:
        matrices = [made(EXPERTS, *shape) for shape in shapes]
        biases = [made(EXPERTS, shape[0]) for shape in shapes]
    columns = (Columns(0, 0, HIDDEN), Columns(0, HIDDEN))
    spec = MoeSpec(EXPERTS, columns, gated(), (True, True), separate, first, dtype, dtype)
    indices = torch.randint(0, EXPERTS - 1, (tokens, CHOICES), generator=generator)
    return made(tokens, FEATURES), indices, made(tokens, CHOICES), matrices, biases, spec.to_text()


def outcome(operator: Any, args: tuple[Any, ...]) -> list[Tensor]:
    out = operator(*args)
    x, _, weights, matrices, biases, _ = args
    cotangent = torch.linspace(0.5, 1.5, out.numel()).reshape(out.shape).to(out)
    leaves = [x, weights, *matrices, *biases]
    return [out, *torch.autograd.grad(out, leaves, cotangent)]


CASES = [*itertools.product([False, True], [False, True], [0, 1, 7])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("separate", "first", "tokens"), CASES)
def test_sorted_is_the_oracle(separate: bool, first: bool, tokens: int, dtype: torch.dtype) -> None:
    """Expert 4 is chosen by nobody, and tokens choose an expert twice."""
    args = operands(tokens, dtype, separate=separate, first=first, out=4)
    ours, theirs = (outcome(operator, args) for operator in reversed(OPERATORS))
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.detach().double().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=2 * TOLERANCES[dtype] * max(scale, 1.0))


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
def test_indices_from_the_end(operator: Any) -> None:
    x, _, weights, *rest = operands(2, torch.float64, separate=False, first=False)
    ours = operator(x, torch.tensor([[-1, 0], [4, -5]]), weights, *rest)
    torch.testing.assert_close(ours, operator(x, torch.tensor([[4, 0], [4, 0]]), weights, *rest))


@pytest.mark.parametrize("wrong", [5, -6, 2**40])
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
def test_indices_of_no_expert(operator: Any, wrong: int) -> None:
    x, _, weights, *rest = operands(2, torch.float64, separate=False, first=False)
    with pytest.raises(IndexError, match=f"chose expert {wrong}, and there are 5"):
        operator(x, torch.tensor([[0, 1], [wrong, 0]]), weights, *rest)


@pytest.mark.parametrize("separate", [False, True])
def test_opcheck(separate: bool) -> None:
    args = operands(6, torch.float32, separate=separate, first=False)
    torch.library.opcheck(torch.ops.fuser.moe.default, args)
    indices, (matrices, biases) = args[1], args[3:5]
    order, _, ends = torch.ops.fuser.sort_choices(indices, EXPERTS, False)
    torch.library.opcheck(torch.ops.fuser.sort_choices.default, (indices, EXPERTS, False))
    each = EXPERTS if separate else 1
    rows = args[0][order // CHOICES].detach().requires_grad_()
    product = (rows, matrices[:each], biases[:each], ends, True)
    torch.library.opcheck(torch.ops.fuser.sorted_product.default, product)


def test_specs_have_a_text() -> None:
    for separate, first in itertools.product([False, True], repeat=2):
        text = operands(1, torch.bfloat16, separate=separate, first=first)[-1]
        assert MoeSpec.from_text(text).to_text() == text


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda f: f.__name__)
def test_dropped_choices_give_nothing(operator: Any, first: bool) -> None:
    """Whatever their weights are, and to the token, the experts and the weight itself."""
    x, indices, weights, *rest = operands(7, torch.float64, separate=False, first=first)
    text = rest.pop()
    dropping = replace(MoeSpec.from_text(text), dropping=True).to_text()
    kept = torch.arange(14).view(7, 2) % 3 > 0
    wrong = torch.where(torch.arange(14).view(7, 2) % 2 > 0, -1, EXPERTS)
    bad = torch.where(kept, weights.detach(), math.nan).requires_grad_()
    token = kept.nonzero()[:, 0]

    def rows_of_the_others(x: Tensor, indices: Tensor, weights: Tensor, *rest: Any) -> Tensor:
        rows = operator(x[token], indices[kept][:, None], weights[kept][:, None], *rest)
        return torch.zeros_like(x).index_add(0, token, rows)

    ours = outcome(operator, (x, torch.where(kept, indices, wrong), bad, *rest, dropping))
    theirs = outcome(rows_of_the_others, (x, indices, weights, *rest, text))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
