"""Operations and bytes of ten workloads and more, as counted by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fuser
from fuser.profiling import predict, profile
from fuser.profiling.parts import Parts, take_apart
from fuser.profiling.result import KEPT, Cost, Profile

FP32, BF16 = 4, 2


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted; compiling kernels has a test of its own."""
    monkeypatch.setattr(predict, "compiled_ahead", lambda regions, arch: (None, []))


def counted(fn: Callable[..., object], *args: object, patterns: str = "*") -> Profile:
    options = {"fuser.patterns": patterns, "fuser.strict": True}
    found = fuser.profile(fn, *args, target="h200", options={"fuser.policy": "always", **options})
    assert not found.problems
    return found


def region(fn: Callable[..., object], *args: object, name: str) -> Cost:
    (row,) = (r for r in counted(fn, *args).regions if r.name.startswith(name))
    assert not row.problem
    return row.ours


def kept(fn: Callable[..., object], *args: object) -> Cost:
    (row,) = counted(fn, *args, patterns="-*").rows
    assert row.name == KEPT
    return row.ours


def attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if keep is not None:
        scores = scores.masked_fill(~keep, -math.inf)
    return scores.softmax(-1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v, torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril())


def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i, j = torch.arange(q.shape[-2])[:, None], torch.arange(k.shape[-2])[None, :]
    return attention(q, k, v, (j <= i) & (i - j < 8))


def heads(dtype: torch.dtype = torch.float32, *, grad: bool = False) -> list[Tensor]:
    return [torch.randn(2, 3, 32, 16, dtype=dtype).requires_grad_(grad) for _ in range(3)]


# -- regions


def test_attention_without_a_mask() -> None:
    with torch.no_grad():
        cost = region(attention, *heads(), name="attention")
    assert cost.flops == 2 * 2 * 3 * 32 * 32 * (16 + 16)
    assert cost.bytes == FP32 * 4 * (2 * 3 * 32 * 16)


def test_a_causal_attention_has_the_pairs_that_are_seen() -> None:
    with torch.no_grad():
        cost = region(causal, *heads(), name="attention")
    assert cost.flops == 2 * 2 * 3 * (32 * 33 // 2) * (16 + 16)
    assert cost.bytes == FP32 * 4 * (2 * 3 * 32 * 16)


def test_a_sliding_window() -> None:
    with torch.no_grad():
        cost = region(window, *heads(), name="attention")
    seen = 8 * 9 // 2 + (32 - 8) * 8
    assert cost.flops == 2 * 2 * 3 * seen * (16 + 16)


def test_a_mask_from_data_counts_as_full_and_is_read() -> None:
    keep = torch.rand(2, 1, 32, 32) < 0.5
    with torch.no_grad():
        cost = region(attention, *heads(), keep, name="attention")
    assert cost.flops == 2 * 2 * 3 * 32 * 32 * (16 + 16)
    assert cost.bytes == FP32 * 4 * (2 * 3 * 32 * 16) + 2 * 32 * 32


def test_attention_in_half_precision_with_fewer_key_heads() -> None:
    q = torch.randn(1, 4, 24, 16, dtype=torch.bfloat16)
    k, v = (torch.randn(1, 2, 40, 16, dtype=torch.bfloat16) for _ in range(2))

    def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))

    with torch.no_grad():
        cost = region(grouped, q, k, v, name="attention")
    assert cost.flops == 2 * 4 * 24 * 40 * (16 + 16)
    assert cost.bytes == BF16 * (2 * 4 * 24 * 16 + 2 * 2 * 40 * 16)


def test_attention_and_its_backward() -> None:
    cost = region(attention, *heads(grad=True), name="attention")
    assert cost.flops == 3.5 * 2 * 2 * 3 * 32 * 32 * (16 + 16)
    assert cost.bytes == FP32 * 3 * 4 * (2 * 3 * 32 * 16)


def test_a_mixture_has_the_experts_that_are_chosen() -> None:
    tokens, width, hidden, experts = 64, 32, 48, 4

    def mixture(x: Tensor, router: Tensor, first: Tensor, last: Tensor) -> Tensor:
        weights, chosen = torch.topk((x @ router).softmax(-1), 2)
        dense = torch.zeros(tokens, experts).scatter(1, chosen, weights)
        each = torch.bmm(F.silu(torch.bmm(x.expand(experts, -1, -1), first)), last)
        return (each * dense.t()[:, :, None]).sum(0)

    x, router = torch.randn(tokens, width), torch.randn(width, experts)
    first, last = torch.randn(experts, width, hidden), torch.randn(experts, hidden, width)
    with torch.no_grad():
        cost = region(mixture, x, router, first, last, name="moe")
    assert cost.flops == 2 * (tokens * 2) * (width * hidden + hidden * width)
    chosen = experts * (1 - (1 - 2 / experts) ** tokens)
    matrices = FP32 * chosen * 2 * width * hidden
    choices = 8 * tokens * 2 + FP32 * tokens * experts  # numbers of experts; weights as they are
    assert cost.bytes == pytest.approx(FP32 * 2 * tokens * width + matrices + choices)


def test_a_layer_norm_of_a_sum() -> None:
    def norm(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.layer_norm(x + y, (64,), w, b)

    x, y, w, b = torch.randn(16, 64), torch.randn(16, 64), torch.randn(64), torch.randn(64)
    with torch.no_grad():
        cost = region(norm, x, y, w, b, name="norm")
    assert cost.flops == 16 * 64 * (1 + 5 + 2)  # the sum, the statistic, weight and bias
    assert cost.bytes == FP32 * (2 * 16 * 64 + 2 * 64 + 16 * 64)


def test_swiglu() -> None:
    with torch.no_grad():
        cost = region(lambda a, b: F.silu(a) * b, torch.randn(8, 32), torch.randn(8, 32),
                      name="activation")  # fmt: skip
    assert cost.flops == 2 * 8 * 32
    assert cost.bytes == FP32 * 3 * 8 * 32


def test_a_loss_of_a_linear_layer_and_its_backward() -> None:
    def loss(x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, w), t)

    x, w = torch.randn(16, 32, requires_grad=True), torch.randn(100, 32, requires_grad=True)
    t = torch.randint(100, (16,))
    with torch.no_grad():
        forward = region(loss, x, w, t, name="loss")
    assert forward.flops == 2 * 16 * 32 * 100
    assert forward.bytes == FP32 * (16 * 32 + 100 * 32 + 1) + 8 * 16
    full = region(loss, x, w, t, name="loss")
    assert full.flops == 3 * 2 * 16 * 32 * 100
    floats = FP32 * (16 * 32 + 100 * 32)
    assert full.bytes == 3 * floats + 2 * 8 * 16 + 2 * FP32  # the loss, and its gradient


def test_a_router() -> None:
    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        weights, chosen = torch.topk(x.softmax(-1), 2)
        return weights / weights.sum(-1, keepdim=True), chosen

    with torch.no_grad():
        cost = region(route, torch.randn(16, 8), name="router")
    # a softmax and a comparison of each; the sum and the quotient of what is chosen
    assert cost.flops == 16 * 8 * (3 + 1) + 16 * 2 * (1 + 1)
    assert cost.bytes == FP32 * 16 * 8 + 16 * 2 * (FP32 + 8)


# -- what is left


def mlp(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, a)), b)


def test_two_products_and_what_lies_between() -> None:
    x, a, b = torch.randn(16, 32), torch.randn(128, 32), torch.randn(32, 128)
    with torch.no_grad():
        cost = kept(mlp, x, a, b)
    assert cost.flops == 2 * 16 * 32 * 128 * 2
    hidden = 16 * 128
    first, between, last = 16 * 32 + 128 * 32 + hidden, 2 * hidden, hidden + 32 * 128 + 16 * 32
    assert cost.bytes == FP32 * (first + between + last)


def test_two_products_and_their_backward() -> None:
    x, a, b = (torch.randn(*s, requires_grad=True) for s in ((16, 32), (128, 32), (32, 128)))
    assert kept(mlp, x, a, b).flops == 3 * 2 * 16 * 32 * 128 * 2


def test_a_residual_is_read_again_behind_a_product() -> None:
    def block(x: Tensor, a: Tensor) -> Tensor:
        y = x.tanh()
        return y + y @ a

    x, a = torch.randn(16, 32), torch.randn(32, 32)
    with torch.no_grad():
        cost = kept(block, x, a)
    y = 16 * 32
    # tanh reads and writes; the product reads it, the matrix, and writes; the sum reads both
    assert cost.bytes == FP32 * (2 * y + (y + 32 * 32 + y) + (2 * y + y))


def test_what_is_pointwise_is_one_kernel() -> None:
    x, y = torch.randn(16, 32), torch.randn(32)
    with torch.no_grad():
        cost = kept(lambda x, y: ((x + y).exp() * 2, (x + y).sum(-1)), x, y)
    assert cost.bytes == FP32 * (16 * 32 + 32 + 16 * 32 + 16)
    assert cost.bound == "launch"


def test_an_expanded_tensor_is_read_as_it_lies_in_memory() -> None:
    x, y = torch.randn(16, 1).expand(16, 32), torch.randn(16, 32)
    with torch.no_grad():
        cost = kept(lambda x, y: x + y, x, y)
    assert cost.bytes == FP32 * (16 + 2 * 16 * 32)
    assert cost.flops == 16 * 32


def test_a_convolution() -> None:
    x, w = torch.randn(2, 3, 16, 16), torch.randn(8, 3, 3, 3)
    with torch.no_grad():
        cost = kept(lambda x, w: F.conv2d(x, w), x, w)
    assert cost.flops == 2 * 2 * 8 * 14 * 14 * (3 * 3 * 3)
    assert cost.bytes == FP32 * (2 * 3 * 16 * 16 + 8 * 27 + 2 * 8 * 14 * 14)


def test_what_is_left_beside_a_region_reads_and_writes_its_operands() -> None:
    def block(x: Tensor, w: Tensor, o: Tensor) -> Tensor:
        q, k, v = ((x @ m).view(1, 32, 2, 16).transpose(1, 2) for m in w)
        return attention(q, k, v).transpose(1, 2).reshape(1, 32, 32) @ o

    x, w, o = torch.randn(1, 32, 32), torch.randn(3, 32, 32), torch.randn(32, 32)
    with torch.no_grad():
        found = counted(block, x, w, o)
    left = found.rows[-1].ours
    assert left.flops == 4 * 2 * 32 * 32 * 32
    each = FP32 * (32 * 32 + 32 * 32 + 32 * 32)
    assert left.bytes == 4 * each + 2 * FP32 * 32 * 32  # `reshape` copies


def test_the_body_of_a_checkpoint_is_counted_without_what_is_computed_again() -> None:
    """The least, whether it is taken apart or not."""

    def checkpointed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return checkpoint(attention, q, k, v, use_reentrant=False)

    product = 2 * 2 * 3 * 32 * 32 * 16
    assert kept(checkpointed, *heads(grad=True)).flops == 6 * product
    (row,) = counted(checkpointed, *heads(grad=True)).rows
    assert row.name == "attention.softmax"
    assert row.ours.flops == (2 + 2.5 * 2) * product


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Parts]:
    """Of every graph that is profiled."""
    found: list[Parts] = []

    def noting(*args: Any, **kwargs: Any) -> Parts:
        found.append(take_apart(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(profile, "take_apart", noting)
    return found


def test_symbolic_sizes_stay_symbols_until_the_call_tells_them(parts: list[Parts]) -> None:
    x = torch.randn(24, 32)
    torch._dynamo.mark_dynamic(x, 0)
    a, b = torch.randn(128, 32), torch.randn(32, 128)
    with torch.no_grad():
        assert kept(mlp, x, a, b).flops == 2 * 24 * 32 * 128 * 2
    work = parts[0].ours_work
    (rows,) = sympy.sympify(work.flops).free_symbols
    assert sympy.expand(work.flops - 2 * rows * 32 * 128 * 2) == 0
    matrices = 2 * 32 * 128
    assert sympy.expand(work.bytes - FP32 * (rows * (2 * 32 + 4 * 128) + matrices)) == 0


def test_symbolic_sizes_of_a_region(parts: list[Parts]) -> None:
    q, k, v = heads()
    for x in (q, k, v):
        torch._dynamo.mark_dynamic(x, 2)
    with torch.no_grad():
        cost = region(attention, q, k, v, name="attention")
    assert cost.flops == 2 * 2 * 3 * 32 * 32 * (16 + 16)
    work = parts[0].regions[0].work
    assert work is not None
    queries, keys = sympy.sympify(work.flops).free_symbols
    assert sympy.expand(work.flops - 2 * 2 * 3 * queries * keys * (16 + 16)) == 0


def test_what_reads_the_shape_of_a_regions_inside_is_left() -> None:
    def shaped(q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        scores = q @ k.transpose(-1, -2) / 4
        return scores.softmax(-1) @ v, x.reshape(scores.shape) * 2, x.view_as(scores) + 1

    with torch.no_grad():
        found = counted(shaped, *heads(), torch.randn(2 * 3 * 32 * 32))
    assert [row.name.partition(".")[0] for row in found.rows] == ["attention", KEPT]
    assert found.rows[-1].ours.bytes == FP32 * (1 + 2) * 2 * 3 * 32 * 32


def test_of_a_table_what_is_taken_counts() -> None:
    """And of a cache what is written to it."""
    table, rows = torch.randn(10_000, 64), torch.tensor([7, 9])
    cache, new, place = torch.zeros(1, 1000, 16), torch.randn(1, 1, 16), torch.tensor([5])
    whole, index = FP32 * 2 * 64, 8 * 2
    with torch.no_grad():
        for take in (
            lambda t, i: torch.nn.functional.embedding(i, t),
            lambda t, i: t[i],
            lambda t, i: t.index_select(0, i),
        ):
            assert kept(take, table, rows).bytes == 2 * whole + index

        def put(cache: Tensor, new: Tensor, place: Tensor) -> Tensor:
            cache.index_copy_(1, place, new)
            return new * 2

        found = kept(put, cache, new, place)
    assert found.bytes == FP32 * 16 * 3 + 8  # a row read, written to the cache, doubled; its place
    assert found.flops == 2 * 16


def test_products_of_vectors_of_integers_and_of_complex_numbers() -> None:
    a, v = torch.randn(100, 80), torch.randn(80)
    z = torch.randn(16, 16, dtype=torch.complex64)
    whole = torch.ones(32, 32, dtype=torch.int8)
    with torch.no_grad():
        assert kept(torch.mv, a, v).flops == 2 * 100 * 80
        assert kept(torch.dot, v, v).flops == 2 * 80
        assert kept(torch.mm, z, z).flops == 4 * 2 * 16**3
        assert kept(torch._int_mm, whole, whole).flops == 2 * 32**3


def test_an_activation_and_its_backward_read_no_result() -> None:
    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    gate, up = (torch.randn(64, 32, requires_grad=True) for _ in range(2))
    assert region(swiglu, gate, up, name="activation").bytes == (3 + 5) * FP32 * 64 * 32


def test_a_causal_attention_that_is_kept_has_the_pairs_that_are_seen() -> None:
    q, k, v = heads()
    with torch.no_grad():
        found = kept(F.scaled_dot_product_attention, q, k, v)
        causal = kept(functools.partial(F.scaled_dot_product_attention, is_causal=True), q, k, v)
    assert found.flops == 2 * 2 * 3 * 32 * 32 * (16 + 16)
    assert causal.flops == 2 * 2 * 3 * (32 * 33 // 2) * (16 + 16)
