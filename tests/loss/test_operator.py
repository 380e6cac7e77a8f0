"""The operator by itself: what PyTorch asks of one, its errors, gradients of gradients, and memory
for rows that are many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from fuser.graph.program import ProgramBuilder
from fuser.lowering.loss import cost, sweep
from fuser.lowering.loss.problem import Problem
from fuser.specs import LinearCrossEntropySpec, Reduction
from tests.compiled import compiled, run

from .forms import CLASSES, FEATURES, Flattened, labels
from .test_forms import ATEN, hidden

ROWS = 13
linear_cross_entropy: Any = torch.ops.fuser.linear_cross_entropy.default
whole: Any = torch.ops.fuser.whole_linear_cross_entropy.default
AHEAD, LATER = [True] * 4, [False] * 4


def spec(**changes: Any) -> LinearCrossEntropySpec:
    """Of a learned temperature in a soft cap, and a z-loss."""
    builder = ProgramBuilder()
    scaled = builder.call(torch.mul, builder.input("z"), builder.input("c0"))
    program = builder.finish(builder.call(torch.mul, builder.call(torch.tanh, scaled), 3.0))
    fields: dict[str, Any] = {
        "captured": 1, "after": program, "bias": True, "dtype": torch.float32,
        "product_dtype": torch.float32, "reduction": Reduction.MEAN, "ignore_index": -100,
        "smoothing": 0.1, "scale": 0.7, "square": 0.02, "square_reduction": Reduction.MEAN_OF_ALL,
    }  # fmt: skip
    return LinearCrossEntropySpec(**{**fields, **changes})


def operands() -> list[Any]:
    """x, matrix, bias, target, weights, squares and what is captured."""
    torch.manual_seed(1)
    shapes = [(ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,)]
    x, weight, bias = (torch.randn(shape).requires_grad_() for shape in shapes)
    target = torch.arange(ROWS).mul(5).remainder(CLASSES)
    target[3] = -100
    weights, squares = (torch.rand(ROWS).requires_grad_() for _ in range(2))
    return [x, weight, bias, target, weights, squares, [torch.tensor(0.4, requires_grad=True)]]


def leaves(given: list[Any]) -> list[Tensor]:
    return [t for t in (*given[:6], *given[6]) if t.requires_grad]


def test_text_form() -> None:
    assert LinearCrossEntropySpec.from_text(spec().to_text()) == spec()


@pytest.mark.parametrize("ahead", [AHEAD, LATER], ids=["ahead", "later"])
@pytest.mark.parametrize("reduction", list(Reduction), ids=lambda r: r.value)
def test_what_pytorch_asks_of_an_operator(reduction: Reduction, ahead: list[bool]) -> None:
    each = reduction is Reduction.NONE
    of = spec(reduction=reduction, square=0.0 if each else 0.02)
    opcheck(linear_cross_entropy, (*operands(), of.to_text(), LATER if each else ahead))


@pytest.mark.parametrize("ahead", [AHEAD, LATER], ids=["ahead", "later"])
def test_gradients(ahead: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything, the same as of the whole; the second time too."""
    monkeypatch.setattr(sweep, "CHUNK", 5 * CLASSES * 4)
    given = operands()
    loss = linear_cross_entropy(*given, spec().to_text(), ahead)[0]
    exact = whole(*given, spec().to_text())
    torch.testing.assert_close(loss, exact)
    expected = torch.autograd.grad(3.0 * exact, leaves(given))
    for _ in range(2):
        found = torch.autograd.grad(3.0 * loss, leaves(given), retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_gradients_of_gradients() -> None:
    found: list[Any] = []
    for ours in (True, False):
        given = operands()
        text = spec().to_text()
        loss = linear_cross_entropy(*given, text, AHEAD)[0] if ours else whole(*given, text)
        (first,) = torch.autograd.grad(loss, given[0], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), given[:2]))
    torch.testing.assert_close(*found)


def test_out_of_range() -> None:
    module, target = Flattened(), labels()
    target[0, 1] = CLASSES
    with pytest.raises(IndexError, match=f"Target {CLASSES} is out of bounds"):
        run(module, (hidden(), target))
    with pytest.raises(IndexError, match=f"Target {CLASSES} is out of bounds"):
        compiled(module, (hidden(), target), **ATEN)


def test_all_ignored() -> None:
    """NaN, and gradients of zero."""
    module, target = Flattened(), torch.full_like(labels(), -100)
    ours, eager = (f(module, (hidden(), target), grad=True) for f in (compiled, run))
    assert ours.rewrites("loss") == 1, ours.reasons()
    assert bool(ours.outputs[0].isnan())
    assert bool(eager.outputs[0].isnan())
    for a, b in zip(ours.grads, eager.grads, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b)


def test_no_rows() -> None:
    given = operands()
    given[0], given[3] = given[0][:0], given[3][:0]
    given[4], given[5] = None, None
    of = spec(reduction=Reduction.SUM, square=0.0)
    loss = linear_cross_entropy(*given, of.to_text(), AHEAD)[0]
    loss.backward()
    assert loss.item() == 0
    assert not given[1].grad.any()


def test_infinite_logits() -> None:
    """A row of infinities is NaN, as eager's, and no other."""
    given = operands()
    with torch.no_grad():
        given[0][4] = torch.inf
    of = spec(captured=0, after=_plain(), smoothing=0.0, square=0.0, reduction=Reduction.NONE)
    given[6] = []
    text = of.to_text()
    ours, eager = linear_cross_entropy(*given, text, LATER)[0], whole(*given, text)
    assert bool(eager[4].isnan())
    assert torch.equal(ours.isnan(), eager.isnan())


def _plain() -> Any:
    builder = ProgramBuilder()
    return builder.finish(builder.input("z"))


def test_chunks_are_bounded() -> None:
    """Logits of 64 MiB, or a sixteenth of all of them; never less than a row."""

    def rows(count: int, classes: int) -> int:
        x, weight = torch.empty(count, 1, device="meta"), torch.empty(classes, 1, device="meta")
        return sweep.chunk_rows(Problem(spec(), x, weight, None, x, None, None, ()))

    assert rows(2048, 131072) == 128
    assert rows(65536, 131072) == 4096
    assert rows(1, 1 << 28) == 1


def test_within_a_checkpoint() -> None:
    module, inputs = Flattened(), (hidden(), labels())

    def whole_module(*given: Tensor) -> Tensor:
        return checkpoint(module, *given, use_reentrant=False)  # type: ignore[return-value]

    ours = compiled(whole_module, inputs, grad=True, **ATEN)
    eager = run(whole_module, inputs, grad=True)
    assert ours.rewrites("loss") == 1, ours.reasons()
    torch.testing.assert_close(ours.grads, eager.grads)


def test_autocast() -> None:
    """Products in bf16, of parameters in fp32."""
    module, inputs = Flattened(), (hidden(), labels())

    def cast(x: Tensor, target: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x, target)

    ours, eager = (f(cast, inputs, grad=True) for f in (compiled, run))
    assert ours.rewrites("loss") == 1, ours.reasons()
    assert ours.outputs[0].dtype == eager.outputs[0].dtype
    torch.testing.assert_close(ours.grads[0], eager.grads[0], rtol=0.05, atol=1e-3)


def test_frozen_matrix() -> None:
    """No gradient of a matrix is computed that nobody asks for."""
    module, x = Flattened(), hidden()
    module.lm_head.requires_grad_(False)
    ours, eager = (f(module, (x, labels()), grad=True) for f in (compiled, run))
    assert ours.rewrites("loss") == 1, ours.reasons()
    added = " ".join(line for r in ours.record.rewritten for line in r.added)
    assert "(True, False, False, False)" in added
    torch.testing.assert_close(ours.grads, eager.grads)


def test_scaled_loss() -> None:
    """In fp16 a loss is scaled so that small gradients are no zeros; they are none here."""
    x = torch.zeros(4, 2, dtype=torch.float16)
    x[:, 0] = 1
    weight = torch.zeros(512, 2, dtype=torch.float16)
    weight[0, 0] = 16.0
    inputs = (x.requires_grad_(), weight.requires_grad_())

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        each = F.cross_entropy((x @ weight.t()).float(), torch.zeros(4).long())
        return each * 2.0**20

    ours, eager = (f(loss, inputs, grad=True) for f in (compiled, run))
    assert ours.rewrites("loss") == 1, ours.reasons()
    for a, b in zip(ours.grads, eager.grads, strict=True):
        assert a is not None
        assert b is not None
        assert bool(b.any())
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("classes", "grad", "each", "reason"),
    [
        (1 << 20, True, False, ""),
        (1 << 20, False, True, ""),
        (1 << 20, True, True, "the backward would compute all logits again"),
        (1 << 12, True, False, "are cheap to write"),
    ],
)
def test_by_default(classes: int, grad: bool, each: bool, reason: str) -> None:
    """Rewritten where logits fill memory, and are computed once."""
    x, weight = torch.randn(16, 2, requires_grad=grad), torch.randn(classes, 2)

    def loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight.t(), target, reduction="none" if each else "mean")

    ours = compiled(loss, (x, weight, torch.arange(16)), grad=grad, inner="eager", policy="auto")
    assert ours.rewrites("loss") == (not reason), ours.reasons()
    assert reason in ours.reasons()


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("hardware", [False, True])
def test_in_half_precision_without_a_gradient(
    monkeypatch: pytest.MonkeyPatch, capped: bool, hardware: bool
) -> None:
    """Left where the products are cheap, and Inductor has nothing but them and a logsumexp."""
    monkeypatch.setattr(cost, "multiplies_in_hardware", lambda dtype: hardware)

    def loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = x @ weight.t()
        return F.cross_entropy((logits.tanh() if capped else logits).float(), target)

    x, weight = torch.randn(16, 2).bfloat16(), torch.randn(1 << 20, 2).bfloat16()
    ours = compiled(loss, (x, weight, torch.arange(16)), grad=False, inner="eager", policy="auto")
    assert ours.rewrites("loss") == (capped or not hardware), ours.reasons()
    assert ("multiplies bfloat16" in ours.reasons()) == (hardware and not capped)
