"""Generated attention kernels on a GPU: tiles of the sizes that the rule chooses, many of them.

`FUSER_DEVICE=cuda pytest tests/gpu`. What the interpreter checks with small tiles is checked here
with the kernels that a device runs: whole tiles between partial ones, descriptors, splits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.graph.program import gather
from fuser.lowering.attention.generated import problem
from fuser.specs import AttentionSpec
from tests.compiled import compiled, run, wide
from tests.lowering.generated import DEVICE, Operands, check, operands, spec

torch.fx.wrap("gather")
pytestmark = pytest.mark.skipif(
    DEVICE.type != "cuda", reason="for a GPU, named by FUSER_DEVICE=cuda"
)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def cap(s0: Tensor) -> Tensor:
    return torch.tanh(s0 * 0.1) * 3.0


def plus(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.tanh(s0 * 0.1 + c0) * 2.0


def kept(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.where(c0 > -0.5, s0 * 0.1, -math.inf)


def causal(iq: Tensor, ik: Tensor) -> Tensor:
    return ik <= iq


MASKS: dict[str, Callable[..., Tensor]] = {
    "causal": causal,
    "bottom right": lambda iq, ik, nq, nk: ik <= iq + (nk - nq),
    "window": lambda iq, ik: (ik <= iq) & (iq - ik < 200),
    "two sides": lambda iq, ik: abs(iq - ik) < 150,
    "chunks": lambda iq, ik: iq // 100 == ik // 100,
    "prefix": lambda iq, ik: (ik <= iq) | (ik < 140),
    "dilated": lambda iq, ik: (ik <= iq) & ((iq - ik) % 3 == 0),
    "by head": lambda ih, iq, ik: (ik <= iq) & (iq - ik <= 60 + ih * 90),
}


def sized(*shapes: tuple[int, ...], **fields: Any) -> Operands:
    return operands(*shapes, **{"rows": 700, "keys": 900, "features": 64, **fields})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str, dtype: torch.dtype) -> None:
    x = sized(rows=900, keys=900, dtype=dtype)
    check(spec(lambda s0: s0 * 0.1, mask=MASKS[mask], dtype=dtype), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("features", "values"),
    [(16, 16), (24, 40), (64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256)],
)
@pytest.mark.parametrize("rows", [5, 500])
def test_head_dimensions(rows: int, features: int, values: int, dtype: torch.dtype) -> None:
    x = sized(rows=rows, keys=517, features=features, values=values, dtype=dtype)
    check(spec(cap, mask=MASKS["bottom right"], dtype=dtype, dead_rows_are_zero=True), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 4, 700, 900), (1, 4, 700, 900), (2, 1, 1, 900), (4, 1, 1), (2, 4, 700, 1)]
)
def test_biases(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(spec(plus, dtype=dtype), sized(shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 1, 900), (2, 1, 700, 900)])
def test_masks_from_data(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = sized(shape, dtype=dtype)
    x.captured[0] = x.captured[0].detach()
    x.captured[0][..., 100:600] = -1.0
    check(spec(kept, dtype=dtype), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_documents(dtype: torch.dtype) -> None:
    x = sized(rows=1200, keys=1200, dtype=dtype)
    x.captured.append(torch.arange(1200).div(170, rounding_mode="floor").expand(2, 1200))

    def mask(ib: Tensor, iq: Tensor, ik: Tensor, c0: Tensor) -> Tensor:
        return (ik <= iq) & (gather(c0, ib, iq) == gather(c0, ib, ik))

    check(spec(lambda s0: s0 * 0.1, mask=mask, dtype=dtype), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["sink", "plus one", "products", "probs", "atomics", "slopes"])
def test_kinds(kind: str, dtype: torch.dtype) -> None:
    def slopes(s0: Tensor, c0: Tensor, iq: Tensor, ik: Tensor) -> Tensor:
        return s0 * 0.1 + c0 * (ik - iq) * 0.01

    made: dict[str, tuple[AttentionSpec, Operands]] = {
        "sink": (spec(cap, sink="c0", mask=causal, dtype=dtype), sized((1, 4, 1, 1), dtype=dtype)),
        "plus one": (spec(cap, sink="0", dtype=dtype), sized(dtype=dtype)),
        "products": (
            spec(lambda s0, s1: (s0 + s1) * 0.1, dtype=dtype), sized(products=2, dtype=dtype)
        ),
        "probs": (
            spec(cap, probs=lambda p, c0: p * p * c0, dtype=dtype), sized((4, 1, 1), dtype=dtype)
        ),
        "atomics": (spec(cap, mask=causal, dtype=dtype), sized(dtype=dtype)),
        "slopes": (spec(slopes, mask=causal, dtype=dtype), sized((4, 1, 1), dtype=dtype)),
    }  # fmt: skip
    check(*made[kind], atomics=kind == "atomics")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [4, 16])
def test_decoding(heads: int, dtype: torch.dtype) -> None:
    """Heads are packed, and keys split over programs."""
    x = sized((2, 1, 1, 5000), heads=heads, rows=1, keys=5000, features=128, dtype=dtype)
    check(spec(plus, dtype=dtype), x)


@pytest.mark.parametrize("features", [64, 128])
def test_descriptors(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that the hardware loads."""
    rule, asked = problem.choose, []

    def choose(*arguments: Any, **named: Any) -> Any:
        found = rule(*arguments, **named)
        asked.append(found)
        return replace(found, tma=True)

    monkeypatch.setattr(problem, "choose", choose)
    x = sized(rows=900, features=features, dtype=torch.bfloat16)
    check(spec(cap, mask=causal, dtype=torch.bfloat16), x)
    assert asked


def attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Tensor:
    at = torch.arange(q.shape[-2], device=q.device)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    scores = scores + slopes[:, None, None] * (at[None, :] - at[:, None])
    scores = scores.masked_fill(at[None, :] > at[:, None], -math.inf)
    return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize("lowering", ["triton", "auto"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_through_inductor(dynamic: bool, lowering: str) -> None:
    """Launches are inlined into Inductor's code, forward and backward, and CUDA graphs replay."""
    x = sized((4,), heads=4, kv=4, rows=700, keys=700).placed()
    inputs = (x.q[0], x.k[0], x.v, x.captured[0])
    options = {"fuser.lowering": lowering}
    found = compiled(attention, inputs, grad=True, inner="inductor", dynamic=dynamic, **options)
    assert found.rewrites() == 1
    exact, eager = run(attention, wide(inputs), grad=True), run(attention, inputs, grad=True)
    for ours, own, want in zip(
        (*found.outputs, *found.grads), (*eager.outputs, *eager.grads),
        (*exact.outputs, *exact.grads), strict=True,
    ):  # fmt: skip
        assert ours is not None
        assert own is not None
        assert want is not None
        allowed = 3 * (own - want).abs().max() + 4e-6 * want.abs().max()
        assert (ours - want).abs().max() <= allowed


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")  # one that torch starts with
def test_cuda_graphs() -> None:
    x = sized((4,), heads=4, kv=4, rows=300, keys=300, dtype=torch.bfloat16).placed()
    inputs = [t.detach() for t in (x.q[0], x.k[0], x.v, x.captured[0])]
    options = {"fuser.lowering": "triton", "fuser.policy": "always", "triton.cudagraphs": True}
    fn = torch.compile(attention, backend="fuser", options=options)
    own, want = attention(*inputs), attention(*(t.double() for t in inputs))
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        got = fn(*inputs).clone()
    assert (got - want).abs().max() <= 2 * (own - want).abs().max()


def test_a_seed_reproduces() -> None:
    """Philox at positions; the gradient of v adds up what the forward kept."""
    x = sized(heads=2, kv=2, rows=300, keys=400).placed()
    of = spec(dropout=0.25)
    first, second = (
        torch.ops.fuser.generated_attention(
            x.q, x.k, x.v, [], torch.tensor([seed], device=DEVICE), of.to_text(), "", False
        )[0]
        for seed in (5, 5)
    )
    assert torch.equal(first, second)
    ones = replace_v(x, torch.ones_like(x.v))
    seed = torch.tensor([7], device=DEVICE)
    out = torch.ops.fuser.generated_attention(
        ones.q, ones.k, ones.v, [], seed, of.to_text(), "", False
    )[0]
    assert abs(out.mean() - 1.0) < 6e-3
    (dv,) = torch.autograd.grad(out.sum(), ones.v)
    torch.testing.assert_close(dv.double().sum(), out.double().sum(), rtol=1e-5, atol=0)


def replace_v(x: Operands, v: Tensor) -> Operands:
    return Operands(x.q, x.k, v.requires_grad_(), x.captured)
