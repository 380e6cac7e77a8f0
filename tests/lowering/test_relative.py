"""Biases by distance become one row of numbers; those that only look like it stay whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from tests.compiled import Run, assert_near, compiled, run, wide
from tests.every import some

B, H, S, D, BUCKETS = 2, 3, 24, 4, 6
Bias = Callable[[Tensor, Tensor, int, int], Tensor]
"""A tensor by head and bucket, one by head, number of queries, number of keys -> bias."""


def _distance(s: int, t: int) -> Tensor:
    return torch.arange(t)[None, :] - torch.arange(s)[:, None]


def _t5(table: Tensor, slopes: Tensor, s: int, t: int) -> Tensor:
    bucket = torch.min(_distance(s, t).abs() // 3, torch.full((), BUCKETS - 1))
    return F.embedding(bucket, table).permute(2, 0, 1).unsqueeze(0)


def _alibi(table: Tensor, slopes: Tensor, s: int, t: int) -> Tensor:
    return -slopes[:, None, None] * _distance(s, t).abs().to(slopes.dtype)


RELATIVE: dict[str, Bias] = {
    "t5": _t5,
    "alibi": _alibi,
    "both": lambda w, m, s, t: _t5(w, m, s, t) + _alibi(w, m, s, t),
    "decay": lambda w, m, s, t: (m[:, None, None] * _distance(s, t)).tanh(),
    "t5 and a window": lambda w, m, s, t: _t5(w, m, s, t).masked_fill(
        _distance(s, t).abs() > 5, -torch.inf
    ),
    "t5 and causal": lambda w, m, s, t: _t5(w, m, s, t).masked_fill(
        _distance(s, t) > 0, torch.finfo(w.dtype).min
    ),
    "gone rows": lambda w, m, s, t: _t5(w, m, s, t).masked_fill(_distance(s, t) > -2, -torch.inf),
}
WHOLE: dict[str, Bias] = {
    "row noise": lambda w, m, s, t: _t5(w, m, s, t) + torch.arange(s)[:, None].sin() * 3,
    "slope by row": lambda w, m, s, t: _alibi(w, m, s, t) * (torch.arange(s)[:, None] % 3),
    "sum of positions": lambda w, m, s, t: w.T[
        :, (torch.arange(s)[:, None] + torch.arange(t)) % BUCKETS
    ],
    "shifted rows": lambda w, m, s, t: _alibi(w, m, s, t).roll(1, -2),
    "reversed keys": lambda w, m, s, t: _alibi(w, m, s, t).flip(-1),
    "dropped": lambda w, m, s, t: _one_changed(_alibi(w, m, s, t)),
    "chunks": lambda w, m, s, t: torch.where(
        torch.arange(s)[:, None] // 4 == torch.arange(t) // 4, 1.5, m[:, None, None]
    ),
}


def _one_changed(bias: Tensor) -> Tensor:
    bias = bias.clone()
    bias[..., 3, 5] += 4.0
    return bias


def _attention(bias: Bias) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, slopes: Tensor) -> Tensor:
        added = bias(table, slopes, q.shape[2], k.shape[2])
        return (q @ k.mT * D**-0.5 + added).softmax(-1) @ v

    return attention


def _inputs(
    keys: int = S, grad: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    q, k, v = torch.randn(B, H, S, D), torch.randn(B, H, keys, D), torch.randn(B, H, keys, 2 * D)
    leaves = [x.to(dtype).requires_grad_(grad) for x in (q, k, v)]
    return (*leaves, torch.randn(BUCKETS, H).to(dtype), torch.rand(H).to(dtype))


def _is_relative(found: Run) -> bool:
    facts = [rewrite.facts for rewrite in found.record.rewritten]
    return any(f.get("bias", "").startswith("by distance") for f in facts)


@pytest.mark.parametrize("keys", [S, S + 8, S - 4])
@pytest.mark.parametrize("name", RELATIVE)
def test_one_row(name: str, keys: int) -> None:
    fn, inputs = _attention(RELATIVE[name]), _inputs(keys)
    ours = compiled(fn, inputs)
    assert _is_relative(ours), ours.record.rewritten
    assert_near(ours, run(fn, inputs), run(fn, wide(inputs)))


@pytest.mark.parametrize("name", RELATIVE)
def test_gradients(name: str) -> None:
    fn, inputs = _attention(RELATIVE[name]), _inputs(grad=True)
    ours = compiled(fn, inputs, grad=True)
    assert _is_relative(ours)
    assert_near(ours, run(fn, inputs, grad=True), run(fn, wide(inputs), grad=True))


@pytest.mark.parametrize("name", WHOLE)
def test_positions_that_tell(name: str) -> None:
    fn, inputs = _attention(WHOLE[name]), _inputs()
    ours = compiled(fn, inputs)
    assert not _is_relative(ours)
    assert_near(ours, run(fn, inputs), run(fn, wide(inputs)))


def test_half() -> None:
    fn, inputs = _attention(_t5), _inputs(dtype=torch.bfloat16)
    ours = compiled(fn, inputs)
    assert _is_relative(ours)
    assert_near(ours, run(fn, inputs), run(fn, wide(inputs)))


def test_few_keys_stay_whole() -> None:
    """Turning the queries around costs more than reading a small bias."""
    fn, inputs = _attention(_t5), _inputs(keys=4 * D - 1)
    assert not _is_relative(compiled(fn, inputs))


INDICES: dict[str, Callable[[Tensor], Tensor]] = {
    "quotient": lambda d: d.abs() // 3,
    "remainder": lambda d: d % BUCKETS,
    "clamp": lambda d: (d * 2).clamp(0, BUCKETS - 1),
    "minimum": lambda d: torch.min(d.abs() // 3, torch.full((), BUCKETS - 1)),
    "where": lambda d: torch.where(d > 0, d.abs() % 2, 3),
    "logarithm": lambda d: torch.log(d.abs().float() + 1).to(torch.long).clamp(max=BUCKETS - 1),
}


@pytest.mark.parametrize("name", some([*INDICES], 3, 2))
def test_nothing_square_is_made(name: str) -> None:
    """Through code generation: no buffer has as many elements as there are scores."""
    size = 160

    def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        index = INDICES[name](_distance(size, size)).clamp(max=BUCKETS - 1)
        bias = F.embedding(index, table).permute(2, 0, 1)
        return (q @ k.mT + bias).softmax(-1) @ v

    torch.manual_seed(3)
    largest = _largest_buffer(attention, (*torch.randn(3, 1, 2, size, D), torch.randn(BUCKETS, 2)))
    assert largest < size * size, largest


def _largest_buffer(fn: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> int:
    """Elements of the largest tensor that Inductor's code for the rewritten graph allocates."""
    torch._dynamo.reset()
    ours = torch.compile(fn, backend="fuser", options={"fuser.policy": "always"})
    with torch.no_grad():
        found, (code,) = run_and_get_code(ours, *inputs)
        torch.testing.assert_close(found, fn(*inputs))
    shapes = re.findall(r"empty_strided_cpu\(\(([\d, ]+)\)", code)
    assert shapes
    return max(math.prod(int(n) for n in s.split(",") if n.strip()) for s in shapes)
