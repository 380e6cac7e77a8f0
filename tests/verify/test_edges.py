"""What two correct programs need not agree on is not held against one, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.events import Compared
from fuser.precision import DoublePrecision, run
from fuser.verification.compare import Conditions, judge
from fuser.verification.edges import sizes

CPU = torch.device("cpu")


def compare(
    original: Callable[..., Any],
    replacement: Callable[..., Any],
    operands: Sequence[Tensor],
    **conditions: Any,
) -> list[Compared]:
    """What is wrong."""
    training = any(x.requires_grad for x in operands)
    found = judge(original, replacement, operands, Conditions(CPU, training, **conditions))
    return [c for c in found if c.problem]


def drawn(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).requires_grad_(grad)


def lowest(x: Tensor) -> list[Tensor]:
    """The best two, of equal ones the first."""
    order = torch.sort(x, dim=-1, descending=True, stable=True)
    return [order[0][..., :2], order[1][..., :2]]


def highest(x: Tensor) -> list[Tensor]:
    found, order = lowest(x.flip(-1))
    return [found, x.shape[-1] - 1 - order]


def test_choices_among_equal_scores() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 3.0], [4.0, 1.0, 2.0, 0.0]])
    assert not compare(lowest, highest, [x])


def test_other_choices_are_wrong() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 3.0], [4.0, 1.0, 2.0, 0.0]])
    wrong = compare(lowest, lambda x: [y.flip(-1) for y in lowest(x)], [x])
    assert [(c.name, c.worst) for c in wrong] == [("output 0", (1, 0)), ("output 1", (1, 0))]


def test_choices_in_any_order() -> None:
    x = drawn(6, 8)
    for unordered in (False, True):
        reverse = compare(
            lowest, lambda x: [y.flip(-1) for y in lowest(x)], [x], unordered=unordered
        )
        assert bool(reverse) is not unordered
    assert compare(lowest, lambda x: lowest(-x), [x], unordered=True)


def test_halves_are_rounded_either_way() -> None:
    x = torch.tensor([0.5, 1.25, 2.5, 7.0])

    def even(x: Tensor) -> list[Tensor]:
        return [x.round().to(torch.int8)]

    assert not compare(even, lambda x: [(x + 0.5).floor().to(torch.int8)], [x])
    (wrong,) = compare(even, lambda x: [(x + 0.9).floor().to(torch.int8)], [x])
    assert wrong.worst == (1,)


def test_a_sum_that_cancels() -> None:
    """Its error is that of its terms, wherever it starts."""
    x = torch.cat([drawn(512), -drawn(512)]) * 1e3
    assert not compare(lambda x: [x.double().sum().float()], lambda x: [x.cumsum(0)[-1]], [x])
    assert compare(lambda x: [x.double().sum().float()], lambda x: [x.cumsum(0)[-1] + 1], [x])


def test_tiny_results_that_happen_to_be_exact() -> None:
    x = drawn(64)
    assert not compare(lambda x: [x * 2.0], lambda x: [x * 2.0 * (1 + 2.0**-22)], [x])
    assert compare(lambda x: [x * 2.0], lambda x: [x * 2.0 * (1 + 2.0**-16)], [x])


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0])
def test_a_gradient_alone(factor: float) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.exp()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return factor * grad * ctx.saved_tensors[0].exp()

    wrong = compare(lambda x: [x.exp()], lambda x: [Wrong.apply(x)], [drawn(9, grad=True)])
    assert [c.name for c in wrong] == ["gradient of x0"]


def test_a_gradient_that_is_missing() -> None:
    x = drawn(9, grad=True)
    wrong = compare(lambda x: [x.exp()], lambda x: [x.detach().exp()], [x])
    assert [c.name for c in wrong] == ["gradient of x0"]


def test_a_small_gradient_beside_a_large_one() -> None:
    """Each is judged by its own size."""
    x, w = drawn(9, grad=True), torch.tensor(1e4, requires_grad=True)

    def right(x: Tensor, w: Tensor) -> list[Tensor]:
        return [x * 1e-6, w * 1e3]

    def wrong(x: Tensor, w: Tensor) -> list[Tensor]:
        return [x.detach() * 1e-6 + (x - x.detach()) * 0.99e-6, w * 1e3]

    assert [c.name for c in compare(right, wrong, [x, w])] == ["gradient of x0"]


def test_another_shape() -> None:
    (wrong,) = compare(lambda x: [x * 2], lambda x: [(x * 2)[None]], [drawn(3)])
    assert "another shape or dtype" in wrong.problem


def test_overflow_that_the_replacement_does_not_have() -> None:
    x = torch.tensor([3e4, 1.0], dtype=torch.float16)
    wide = lambda x: [(x.float() * 4 / 4).half()]  # noqa: E731
    assert not compare(lambda x: [x * 4 / 4], wide, [x])
    assert compare(wide, lambda x: [x * 4 / 4], [x])


def test_grouped_products() -> None:
    """They have no kernel for float64."""
    rows, matrices = drawn(6, 16, grad=True), drawn(3, 16, 8, grad=True)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)

    def grouped(rows: Tensor, matrices: Tensor, ends: Tensor) -> list[Tensor]:
        return [F.grouped_mm(rows, matrices, offs=ends)]

    def spelled(rows: Tensor, matrices: Tensor, ends: Tensor) -> list[Tensor]:
        return [torch.cat([rows[:2] @ matrices[0], rows[2:] @ matrices[2]])]

    def wrong(rows: Tensor, matrices: Tensor, ends: Tensor) -> list[Tensor]:
        return [torch.cat([rows[:2] @ matrices[0], rows[2:] @ matrices[1]])]

    assert not compare(grouped, spelled, [rows, matrices, ends])
    assert compare(grouped, wrong, [rows, matrices, ends])


@pytest.mark.parametrize(
    ("rows", "matrices", "end"),
    [((8, 16), (3, 16, 8), 8), ((3, 8, 16), (16, 8), 8), ((8, 16), (16, 24), 16)],
)
def test_every_form_of_grouped_products(
    rows: tuple[int, ...], matrices: tuple[int, ...], end: int
) -> None:
    """As the library's own in bfloat16; beyond the last end, where that has anything, are zeros."""
    a, b = torch.randn(rows).bfloat16(), torch.randn(matrices).bfloat16()
    ends = torch.tensor([3, 3, end], dtype=torch.int32)
    with DoublePrecision():
        wide = F.grouped_mm(a.double(), b.double(), offs=ends)
        short = F.grouped_mm(a.double(), b.double(), offs=ends - 2)
    torch.testing.assert_close(wide.bfloat16(), F.grouped_mm(a, b, offs=ends))
    assert short.shape == wide.shape
    if wide.ndim == 2:
        beyond = short[end - 2 :] if len(matrices) == 3 else short[:, end - 2 :]
        assert not beyond.any()


def test_what_cancels_everywhere_is_of_the_size_that_it_has_elsewhere() -> None:
    """With equal rows of values the gradients of queries are zero, and what is left of two correct
    programs are roundings of different sums."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / 4).softmax(-1) @ v

    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, 2, 1, 16, generator=generator, dtype=torch.float64)
    operands = [row.expand(1, 2, 32, 16).contiguous().requires_grad_() for _ in range(3)]
    found = sizes(lambda xs: run(attention, xs), operands)
    exact = run(attention, operands)
    assert float(exact.gradients[0].abs().max()) < 1e-14
    assert found[1] > 1e-3
    assert found[0] < 4 * float(exact.outputs[0].abs().max())
