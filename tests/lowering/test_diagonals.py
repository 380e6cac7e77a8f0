"""Trained biases by distance: one number for each diagonal, and its gradient a sum along it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.lowering.attention.diagonals import Diagonals
from tests.compiled import assert_near, compiled, run, wide
from tests.lowering.generated import FACTOR
from tests.lowering.test_relative import RELATIVE, WHOLE

B, H, D, BUCKETS = 2, 3, 8, 6
SIZES = [(24, 24), (24, 20), (16, 40)]
Program = Callable[..., Tensor]


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the biases that a row was made for."""
    found: list[str] = []
    emit = Diagonals.emit

    def noted(self: Diagonals, builder: object) -> object:
        found.append(self.operand.node.name)
        return emit(self, builder)  # type: ignore[arg-type]

    monkeypatch.setattr(Diagonals, "emit", noted)
    return found


def check(fn: Program, s: int = 24, t: int = 24, **options: object) -> None:
    torch.manual_seed(0)
    shapes = [(B, H, s, D), (B, H, t, D), (B, H, t, D), (BUCKETS, H), (H,)]
    args = [torch.randn(shape).requires_grad_() for shape in shapes]
    ours = compiled(fn, args, grad=True, **{"fuser.lowering": "triton", **options})  # type: ignore[arg-type]
    assert ours.rewrites() == 1
    assert_near(ours, run(fn, args, grad=True), run(fn, wide(args), grad=True), factor=FACTOR)


def attention(bias: Callable[..., Tensor], s: int = 24, t: int = 24) -> Program:
    def fn(q: Tensor, k: Tensor, v: Tensor, w: Tensor, m: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) + bias(w, m, s, t), -1) @ v

    return fn


def bucket(s: int, t: int) -> Tensor:
    distance = torch.arange(t)[None, :] - torch.arange(s)[:, None]
    return (distance.abs() // 3).clamp(max=BUCKETS - 1)


def t5(w: Tensor, m: Tensor, s: int, t: int) -> Tensor:
    return F.embedding(bucket(s, t), w).permute(2, 0, 1).unsqueeze(0)


@pytest.mark.parametrize(("s", "t"), SIZES)
@pytest.mark.parametrize("name", ["t5", "t5 and causal", "t5 and a window"])
def test_tables(name: str, s: int, t: int, laid_out: list[str]) -> None:
    check(attention(RELATIVE[name], s, t), s, t)
    assert len(laid_out) == 1


PRODUCERS: dict[str, Callable[..., Tensor]] = {
    "scaled": lambda w, m, s, t: t5(w * 2.0, m, s, t) * 0.5,
    "sum of two": lambda w, m, s, t: t5(w, m, s, t) + t5(w.flip(0), m, s, t),
    "gated by heads": lambda w, m, s, t: t5(w, m, s, t) * torch.sigmoid(m)[:, None, None],
    "beside what is not trained": lambda w, m, s, t: t5(w, m, s, t) + bucket(s, t) * 0.1,
    "with a padding row": lambda w, m, s, t: F.embedding(bucket(s, t), w, padding_idx=0).permute(
        2, 0, 1
    ),
    "no gradient near": lambda w, m, s, t: (
        t5(w, m, s, t).masked_fill(bucket(s, t) == 0, 0.0) + t5(w, m, s, t).detach()
    ),
}


APART = ("gated by heads", "no gradient near")
"""Their parts are captured one by one, and some of these are no producer's result."""


@pytest.mark.parametrize("name", PRODUCERS)
def test_producers(name: str, laid_out: list[str]) -> None:
    check(attention(PRODUCERS[name]))
    assert bool(laid_out) == (name not in APART)


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_embeddings_that_count_their_positions(option: str, laid_out: list[str]) -> None:
    """Looked up more or less often, a row would get another gradient, or another kind of one."""

    def bias(w: Tensor, m: Tensor, s: int, t: int) -> Tensor:
        return F.embedding(bucket(s, t), w, **{option: True}).permute(2, 0, 1)

    if option == "sparse":
        with torch.no_grad():  # sparse gradients are not compiled at all
            compiled(attention(bias), _inputs(grad=False), **{"fuser.lowering": "triton"})
    else:
        check(attention(bias))
    assert laid_out == []


def test_under_autocast(laid_out: list[str]) -> None:
    """The bias is made outside of it, and would be fp32 inside."""

    def fn(q: Tensor, k: Tensor, v: Tensor, w: Tensor, m: Tensor) -> Tensor:
        bias = t5(w.bfloat16().exp(), m, 24, 24)
        with torch.autocast("cpu", torch.bfloat16):
            return torch.softmax(q @ k.mT + bias, -1).to(v.dtype) @ v

    args = _inputs(grad=True)
    ours = compiled(fn, args, grad=True, **{"fuser.lowering": "triton"})
    plain = attention(lambda w, m, s, t: t5(w.exp(), m, s, t))
    assert_near(ours, run(fn, args, grad=True), run(plain, args, grad=True))


def _inputs(*, grad: bool) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(B, H, 24, D), (B, H, 24, D), (B, H, 24, D), (BUCKETS, H), (H,)]
    return [torch.randn(shape).requires_grad_(grad) for shape in shapes]


def _looked_up(index: Tensor, w: Tensor) -> Tensor:
    return F.embedding(index, w).permute(2, 0, 1)


ROW, KEY = torch.arange(24)[:, None], torch.arange(24)
LOOKALIKES: dict[str, Callable[..., Tensor]] = {
    "one cell is another": lambda w, m, s, t: _looked_up(
        torch.where((ROW == 3) & (KEY == 7), 0, bucket(s, t)), w
    ),
    "far rows stand still": lambda w, m, s, t: _looked_up(
        ((KEY - ROW.clamp(max=10)).abs() // 4).clamp(max=BUCKETS - 1), w
    ),
    "rows are scaled": lambda w, m, s, t: _looked_up(bucket(s, t), w) * m[ROW % H],
    "a table of sums beside": lambda w, m, s, t: (
        _looked_up(bucket(s, t), w) + _looked_up((ROW + KEY) % BUCKETS, w)
    ),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalikes(name: str, laid_out: list[str]) -> None:
    check(attention(LOOKALIKES[name]))
    assert laid_out == []


@pytest.mark.parametrize("name", WHOLE)
def test_what_only_looks_like_it_stays_whole(name: str, laid_out: list[str]) -> None:
    check(attention(lambda w, m, s, t: WHOLE[name](w, m, s, t) + 0 * t5(w, m, s, t)))
    assert laid_out == []


def test_a_table_that_is_written_to_later(laid_out: list[str]) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, w: Tensor, m: Tensor) -> Tensor:
        table = w * 1.0
        bias = F.embedding(bucket(24, 24), table.detach()).permute(2, 0, 1) * m[:, None, None]
        table.detach().mul_(3.0)
        return torch.softmax(q @ k.transpose(-1, -2) + bias, -1) @ v + table.sum()

    torch.manual_seed(0)
    args = [torch.randn(B, H, 24, D).requires_grad_() for _ in range(3)]
    args += [torch.randn(BUCKETS, H).requires_grad_(), torch.randn(H).requires_grad_()]
    ours = compiled(fn, args, grad=True, **{"fuser.lowering": "triton"})
    assert_near(ours, run(fn, args, grad=True), run(fn, wide(args), grad=True))
    assert laid_out == []


def test_inference_and_sizes_that_vary(laid_out: list[str]) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT + t5(w, w, q.shape[2], k.shape[2]), -1) @ v

    args = [torch.randn(B, H, 24, D) for _ in range(3)] + [torch.randn(BUCKETS, H)]
    for dynamic in (False, True):
        for grad in (False, True):
            inputs = [a.clone().requires_grad_(grad) for a in args]
            ours = compiled(fn, inputs, grad=grad, dynamic=dynamic, **{"fuser.lowering": "triton"})
            exact = run(fn, wide(inputs), grad=grad)
            assert_near(ours, run(fn, inputs, grad=grad), exact)
            assert len(laid_out) == (grad and not dynamic)
            laid_out.clear()


@pytest.mark.parametrize(("s", "t"), [(1, 1), (1, 5), (5, 1), (3, 7), (7, 3)])
def test_the_operator(s: int, t: int) -> None:
    row = torch.randn(2, 3, s + t - 1, dtype=torch.float64, requires_grad=True)
    laid = torch.ops.fuser.along_diagonals(row, s)
    i, j = torch.arange(s)[:, None], torch.arange(t)
    assert torch.equal(laid, row[..., j - i + s - 1])
    grad = torch.randn_like(laid)
    ours, theirs = (torch.autograd.grad(x, row, grad)[0] for x in (laid, row[..., j - i + s - 1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.library.opcheck(torch.ops.fuser.along_diagonals.default, (row, s))
    torch.library.opcheck(torch.ops.fuser.sum_of_diagonals.default, (laid.detach(),))
