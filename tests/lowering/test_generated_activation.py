"""Generated kernels of activations, in Triton's interpreter or on the device of `FUSER_DEVICE`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.lowering.activation.generated import catalogue
from fuser.lowering.activation.generated.layout import Layout, Sum
from fuser.lowering.activation.generated.problem import Problem, problem
from fuser.lowering.triton.launch import INTERPRETER
from fuser.specs import ActivationSpec
from tests.compiled import compiled, run
from tests.every import EVERY, some
from tests.lowering.activations import (
    FP32,
    HALF,
    activation,
    biased,
    biased_halves,
    by_row,
    check,
    clamped,
    dyt,
    generated,
    halves,
    operands,
    ordered,
    outcome,
    residual,
    swiglu,
)
from tests.lowering.generated import DEVICE, INTERPRETED


def _kinds(dtype: torch.dtype, b: int, t: int, d: int) -> dict[str, tuple[ActivationSpec, Any]]:
    full, along, each = (1, b, t, d), (1, 1, 1, d), (1, b, 1, d)

    def of(function: Any, *parts: int) -> ActivationSpec:
        return activation(function, *parts, dtype=dtype)

    return {
        "two": (of(swiglu, 1, 1), [full, full]),
        "halves": (of(halves, 2), [(2, b, t, d)]),
        "bias": (of(biased, 1, 1), [full, along]),
        "dyt": (of(dyt, 1, 1, 1, 1), [full, (1, 1, 1, 1), along, along]),
        "residual": (of(residual, 1, 1, 1), [full, each, full]),
        "by position": (of(residual, 1, 1, 1), [full, (1, 1, t, d), full]),
        "by row": (of(by_row, 1, 1), [full, (1, b, t, 1)]),
        "by batch": (of(by_row, 1, 1), [full, (1, b, 1, 1)]),
        "lead and rows": (of(dyt, 1, 1, 1, 1), [full, (1, b, 1, 1), (1, b, 1, d), (1, 1, t, 1)]),
        "biased halves": (of(biased_halves, 2, 2), [(2, b, t, d), (2, 1, 1, d)]),
        "halves by row": (of(biased_halves, 2, 2), [(2, b, t, d), (2, b, t, 1)]),
        "halves by number": (of(biased_halves, 2, 2), [(2, b, t, d), (2, 1, 1, 1)]),
        "broadcast": (of(swiglu, 1, 1), [(1, b, 1, d), (1, 1, t, d)]),
    }


KINDS = list(_kinds(FP32, 1, 1, 1))


SHAPES = [(2, 5, 70), (1, 9, 16), (3, 1, 129)]
SHAPED = [(k, s) for i, k in enumerate(KINDS) for j, s in enumerate(SHAPES) if EVERY or i % 3 == j]


@pytest.mark.parametrize(("kind", "shape"), SHAPED, ids=str)
def test_kinds(kind: str, shape: tuple[int, int, int]) -> None:
    spec, shapes = _kinds(FP32, *shape)[kind]
    check(spec, operands(*shapes))


@pytest.mark.parametrize("kind", some(KINDS, 2))
def test_kinds_in_half(kind: str) -> None:
    spec, shapes = _kinds(HALF, 2, 5, 70)[kind]
    check(spec, operands(*shapes, dtype=HALF))


def test_operands_of_several_dtypes() -> None:
    """A bias in fp32, whose sum is not rounded on the way."""

    def mixed(c0: Tensor, c1: Tensor) -> Tensor:
        return F.gelu(c0.to(torch.float32) + c1).to(torch.bfloat16)

    x, bias = operands((1, 40, 33), (1, 1, 33))
    check(activation(mixed, 1, 1, dtype=HALF), [x.detach().to(HALF).requires_grad_(), bias])


@pytest.mark.parametrize("order", [(1, 2, 0, 3), (1, 2, 3, 0), (0, 3, 1, 2), (1, 3, 0, 2)], ids=str)
def test_orders_in_memory(order: tuple[int, ...]) -> None:
    """Halves of rows, halves in turn, other orders: the gradient has the operand's own."""
    (x,) = operands((2, 3, 5, 18))
    x = ordered(x, *order)
    ours = check(activation(clamped, 2), [x])
    (grad,) = ours.grads
    assert grad is not None
    assert grad.stride() == x.stride()
    dims = [d - 1 for d in order if d]
    assert ours.outputs[0].stride() == ordered(ours.outputs[0], *dims).stride()


def test_strided_operands() -> None:
    x, y = operands((1, 6, 80), (1, 6, 80))
    with torch.no_grad():
        x, y = x[:, ::2, 10:73].requires_grad_(), y[:, 3:, 17:].requires_grad_()
    check(activation(swiglu, 1, 1), [x, y])
    bias = torch.zeros(1, device=DEVICE).expand(1, 3, 63).requires_grad_()
    check(activation(swiglu, 1, 1), [x, bias])


@pytest.mark.parametrize(
    "shape", [(1,), (3,), (257,), (2, 1), (1, 1), (1, 7, 1), (2, 2, 2, 2, 3)], ids=str
)
def test_ranks(shape: tuple[int, ...]) -> None:
    check(activation(swiglu, 1, 1), operands((1, *shape), (1, *shape)))
    check(activation(halves, 2), operands((2, *shape)))
    check(activation(biased, 1, 1), operands((1, *shape), (1,) * (1 + len(shape))))


def test_no_elements() -> None:
    ours = outcome(generated, activation(biased, 1, 1), operands((1, 0, 4), (1, 1, 4)))
    assert [g.tolist() for g in ours.grads if g is not None] == [[[]], [[[0.0] * 4]]]


@pytest.mark.parametrize("kind", ["dyt", "biased halves", "residual"])
def test_sizes_that_are_symbols(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text that they have: sizes are arguments, and positions may need 64 bits."""

    def symbolic(*given: Any) -> Layout:
        return replace(Layout(*given), columns=None, wide=True)

    monkeypatch.setattr("fuser.lowering.activation.generated.problem.Layout", symbolic)
    spec, shapes = _kinds(FP32, 2, 5, 70)[kind]
    check(spec, operands(*shapes))


@pytest.mark.parametrize("wanted", [[0], [1, 2], [0, 3]], ids=str)
def test_gradients_of_a_part(wanted: list[int]) -> None:
    """Where others are frozen, gradients are the same."""
    spec, shapes = _kinds(FP32, 2, 5, 70)["dyt"]
    x = operands(*shapes)
    every = outcome(generated, spec, x).grads
    frozen = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(x)]
    for place, grad in zip(wanted, outcome(generated, spec, frozen).grads, strict=True):
        full = every[place]
        assert full is not None
        assert grad is not None
        torch.testing.assert_close(grad, full, atol=1e-6, rtol=1e-6)


def test_results_are_the_same_in_every_run() -> None:
    spec, shapes = _kinds(FP32, 2, 5, 70)["lead and rows"]
    x = operands(*shapes)
    once, twice = outcome(generated, spec, x), outcome(generated, spec, x)
    for a, b in zip([*once.outputs, *once.grads], [*twice.outputs, *twice.grads], strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_what_is_no_number_stays_where_it_is(number: float) -> None:
    (x,) = operands((2, 3, 70))
    with torch.no_grad():
        x[0, 1, 7] = number
    ours, plain = (
        outcome(generated, activation(clamped, 2), [x]),
        run(lambda t: clamped(t[0], t[1]), [x]),
    )
    torch.testing.assert_close(ours.outputs[0], plain.outputs[0], equal_nan=True)
    (grad,) = ours.grads
    assert grad is not None
    assert int(grad.isfinite().logical_not().sum()) <= 2


@pytest.mark.parametrize("mask", [torch.bool, torch.int64], ids=str)
def test_operands_that_are_no_floats(mask: torch.dtype) -> None:
    def hidden(c0: Tensor, c1: Tensor) -> Tensor:
        return torch.where(c1 > 0, F.silu(c0), -1.0)

    (x,) = operands((1, 5, 40))
    check(activation(hidden, 1, 1), [x, (x > 0)[..., :1].to(mask)])


def test_what_has_no_kernels() -> None:
    text = activation(swiglu, 1, 1).to_text()
    for dtype, reason in ((torch.float64, "not in float64"), (torch.complex64, "no dtype of its")):
        with pytest.raises(match=reason):
            problem([torch.ones(1, 3, 4, dtype=dtype)] * 2, text, "")


@INTERPRETED
def test_opcheck() -> None:
    x = operands((2, 3, 4, 30), (2, 1, 1, 30))
    x[0] = ordered(x[0], 1, 2, 0, 3)
    text = activation(biased_halves, 2, 2).to_text()
    torch.library.opcheck(torch.ops.fuser.generated_activation.default, (x, text, ""))
    torch.library.opcheck(torch.ops.fuser.activation.default, (x, text))
    plain = [t.detach() for t in x]
    torch.library.opcheck(torch.ops.fuser.interpreted_activation.default, (plain, text, ""))
    grad = torch.ones(3, 4, 30)
    backward = torch.ops.fuser.interpreted_activation_backward.default
    for needs in ([True, True], [False, True]):
        torch.library.opcheck(backward, (grad, plain, text, "", needs))
        given = (grad, plain, text, needs)
        torch.library.opcheck(torch.ops.fuser.activation_backward.default, given)


@pytest.mark.parametrize("kind", KINDS[::3])
def test_entries_are_read_as_they_are_written(kind: str) -> None:
    spec, shapes = _kinds(FP32, 2, 5, 70)[kind]
    with catalogue.recording() as found:
        outcome(generated, spec, operands(*shapes))
    assert [entry.stage for entry in found.values()] == ["forward", "backward"]
    for line, entry in found.items():
        again = catalogue.Entry.from_json(line)
        assert again == entry
        assert again.kernels("sm_90") == entry.kernels("sm_90")


def test_sums_are_of_every_kind() -> None:
    kinds: set[Sum] = set()
    for spec, shapes in _kinds(FP32, 2, 5, 70).values():
        captured = [torch.empty(shape, device="meta") for shape in shapes]
        of = Problem(spec, captured, "", INTERPRETER, False)
        with catalogue.recording() as found:
            of.backward(of.forward(), [True] * len(captured))
        layout = next(e.layout for e in found.values() if e.stage == "backward")
        kinds |= {layout.sum_of(f"c{j}") for j in range(len(captured))}
    assert kinds == set(Sum)


@INTERPRETED
def test_it_is_left_alone_unless_asked_for() -> None:
    x, y = torch.randn(4, 8), torch.randn(4, 8)

    def form(x: Tensor, y: Tensor) -> Tensor:
        return F.silu(x) * y

    assert compiled(form, (x, y), policy="auto").rewrites("activation") == 0
    found = compiled(form, (x, y), policy="always", **{"fuser.lowering": "triton"})
    assert [r.lowering for r in found.record.rewritten] == ["triton, interpreted"]
