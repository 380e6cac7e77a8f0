"""The operators `fuser::flash_attention` and `fuser::attention`: schemas, empty rows, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fuser.lowering  # noqa: F401
from fuser.graph.program import IDENTITY_TEXT, Program
from fuser.specs import AttentionSpec
from tests.compiled import Run, assert_near, run, wide

B, H, S, SK, D = 2, 4, 9, 13, 8
LOWEST = torch.finfo(torch.float32).min
flash = torch.ops.fuser.flash_attention.default
attention = torch.ops.fuser.attention.default


def qkv(
    dtype: torch.dtype = torch.float32, kv: int = H, rows: int = S, keys: int = SK
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(11)
    shapes = ((B, H, rows, D), (B, kv, keys, D), (B, kv, keys, D))
    return tuple(torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes)


def dense(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float, filled: bool
) -> Tensor:
    """In plain PyTorch, in the dtype of q; `filled` biases overwrite the scores.

    Otherwise the causal mask is added too: a row without a key then has NaN gradients throughout.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * scale
    if bias is not None and filled:
        huge = bias <= -1e30
        scores = scores + bias.masked_fill(huge, 0).to(q.dtype)
        scores = torch.where(huge, bias.to(q.dtype), scores)
    elif bias is not None:
        scores = scores + bias.to(q.dtype)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        hidden = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, -torch.inf)
        scores = torch.where(seen, scores, -torch.inf) if filled else scores + hidden
    return scores.softmax(-1) @ v


def biases() -> dict[str, Tensor | None]:
    noise = torch.randn(1, H, S, SK, generator=torch.Generator().manual_seed(5))
    hidden = torch.zeros(B, 1, S, SK)
    hidden[0, :, 2, 3:] = 1
    hidden[1, :, 4] = 1  # a query without any key
    some = torch.zeros(B, 1, S, SK)
    some[1, :, :, 7:] = 1
    return {
        "none": None,
        "noise": noise,
        "padding": some.masked_fill(some.bool(), -torch.inf),
        "noise and padding": noise + some.masked_fill(some.bool(), -torch.inf),
        "dead, infinite": hidden.masked_fill(hidden.bool(), -torch.inf),
        "dead, lowest": hidden.masked_fill(hidden.bool(), LOWEST),
    }


CASES = [
    (name, causal, filled, kv)
    for name in biases()
    for causal, filled, kv in (
        (False, False, H),
        (True, False, 2),
        (False, True, 2),
        (True, True, H),
    )
    if not (filled and name in ("none", "noise"))
]


@pytest.mark.parametrize(("name", "causal", "filled", "kv"), CASES)
def test_flash_numbers_and_gradients(name: str, causal: bool, filled: bool, kv: int) -> None:
    """Near to fp64, NaN for a query without a key, and no gradient through what was overwritten."""
    bias = biases()[name]
    rest = (bias, causal, 0.4, filled)
    inputs = qkv(kv=kv)
    ours = run(lambda q, k, v: flash(q, k, v, *rest)[0], inputs, grad=True)
    eager = run(lambda q, k, v: dense(q, k, v, *rest), inputs, grad=True)
    exact = run(lambda q, k, v: dense(q, k, v, *rest), wide(inputs), grad=True)
    if name == "dead, lowest" and not filled:  # a sum with the lowest number: fp32 absorbs
        exact = Run([x.double() for x in eager.outputs], [_double(x) for x in eager.grads])
    assert_near(ours, eager, exact)
    assert ours.outputs[0].isnan().any() == (name == "dead, infinite")


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def test_log_sum_exp() -> None:
    q, k, v = qkv()
    _, lse = flash(q, k, v, None, False, 0.4, False)
    assert lse.dtype is torch.float32
    torch.testing.assert_close(lse, (q @ k.mT * 0.4).logsumexp(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["none", "noise and padding"])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_schema(name: str, causal: bool, dtype: torch.dtype) -> None:
    """Fake kernel, strides, aliasing, autograd registration, static and dynamic shapes."""
    bias = biases()[name]
    bias = None if bias is None else bias.to(dtype)
    torch.library.opcheck(flash, (*qkv(dtype), bias, causal, 0.4, False))


def spec(**changes: Any) -> AttentionSpec:
    score = Program('{"inputs":["s0"],"body":[],"out":"s0"}')
    fields: dict[str, Any] = {
        "contractions": 1,
        "captured": 0,
        "score": score,
        "probs": Program(IDENTITY_TEXT),
        "dtype": torch.float32,
        "score_dtype": torch.float32,
        "softmax_dtype": torch.float32,
    }
    return AttentionSpec(**{**fields, **changes})


BIASED = Program(
    '{"inputs":["s0","c0"],"body":[["add","operator:add",[{"$":"s0"},{"$":"c0"}],{}]],"out":"add"}'
)
SPECS: dict[str, tuple[AttentionSpec, tuple[Tensor, ...]]] = {
    "plain": (spec(), ()),
    "bias": (spec(score=BIASED, captured=1), (torch.randn(1, H, S, SK),)),
    "sink": (spec(captured=1, sink="c0"), (torch.randn(1, H, 1, 1),)),
    "plus one": (spec(sink="0"), ()),
}


@pytest.mark.parametrize("name", SPECS)
def test_text_of_a_spec(name: str) -> None:
    made, _ = SPECS[name]
    assert AttentionSpec.from_text(made.to_text()) == made


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("kv", [H, 2])
def test_attention_schema(name: str, kv: int) -> None:
    made, captured = SPECS[name]
    q, k, v = qkv(kv=kv)
    trained = [c.clone().requires_grad_() for c in captured]
    torch.library.opcheck(attention, ([q], [k], v, trained, None, made.to_text()))


def _by_hand(name: str, q: Tensor, k: Tensor, v: Tensor, c: Tensor | None) -> Tensor:
    scores = q @ k.mT
    if name == "bias":
        assert c is not None
        scores = scores + c
    if name in ("sink", "plus one"):
        column = scores.new_zeros(1) if c is None else c
        joined = torch.cat([scores, column.expand(*scores.shape[:-1], 1)], -1)
        return joined.softmax(-1)[..., :-1] @ v
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("name", SPECS)
def test_attention_numbers_and_gradients(name: str) -> None:
    made, captured = SPECS[name]
    inputs = (*qkv(), *(c.clone().requires_grad_() for c in captured))

    def ours(q: Tensor, k: Tensor, v: Tensor, *c: Tensor) -> Tensor:
        return attention([q], [k], v, list(c), None, made.to_text())

    def theirs(q: Tensor, k: Tensor, v: Tensor, *c: Tensor) -> Tensor:
        return _by_hand(name, q, k, v, c[0] if c else None)

    exact = run(theirs, wide(inputs), grad=True)
    assert_near(run(ours, inputs, grad=True), run(theirs, inputs, grad=True), exact)


def test_attention_under_autocast_keeps_its_dtypes() -> None:
    made, _ = SPECS["plain"]
    q, k, v = qkv()
    plain = attention([q], [k], v, [], None, made.to_text())
    with torch.autocast("cpu", torch.bfloat16):
        found = attention([q], [k], v, [], None, made.to_text())
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, plain)
