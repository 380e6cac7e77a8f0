"""The oracle with a mask, positions and tables, against plain PyTorch."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor

from fuser.graph.program import IDENTITY_TEXT, Program, ProgramBuilder, gather, rounded
from fuser.lowering.attention.reference import attend
from fuser.specs import AttentionSpec

B, H, S, SK, D = 2, 4, 5, 7, 3


def _score() -> Program:
    """s0 + table[head, distance to the last key], rounded to bf16."""
    builder = ProgramBuilder()
    s, iq, ik, ih, nk, table = map(builder.input, ("s0", "iq", "ik", "ih", "nk", "c0"))
    distance = builder.call(operator.add, builder.call(operator.sub, iq, ik), nk)
    found = builder.call(rounded, builder.call(gather, table, ih, distance), "bfloat16")
    return builder.finish(builder.call(operator.add, s, found))


def _mask() -> Program:
    """Documents are equal, or the key is the first."""
    builder = ProgramBuilder()
    rows, keys, ik = map(builder.input, ("c1", "c2", "ik"))
    same = builder.call(operator.eq, rows, keys)
    return builder.finish(builder.call(operator.or_, same, builder.call(operator.eq, ik, 0)))


def _spec(mask: Program | None) -> AttentionSpec:
    dtype = torch.float32
    identity = Program(IDENTITY_TEXT)
    return AttentionSpec(1, 3, _score(), identity, dtype, dtype, dtype, mask=mask)


def _plain(q: Tensor, k: Tensor, v: Tensor, table: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    i, j = torch.arange(S)[:, None], torch.arange(SK)
    bias = table[:, i - j + SK].to(torch.bfloat16)
    scores = q @ k.repeat_interleave(2, 1).mT + bias
    keep = (rows == keys) | (j == 0)
    return scores.masked_fill(~keep, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)


def _inputs() -> list[Tensor]:
    torch.manual_seed(0)
    q, k = torch.randn(B, H, S, D), torch.randn(B, 2, SK, D)
    v, table = torch.randn(B, 2, SK, D), torch.randn(H, S + SK + 1)
    floats = [x.requires_grad_() for x in (q, k, v, table)]
    return [*floats, torch.arange(S).view(1, 1, S, 1) // 2, torch.arange(SK).view(1, 1, 1, SK) // 2]


def test_numbers_and_gradients() -> None:
    inputs = _inputs()
    q, k, v, *captured = inputs
    text = _spec(_mask()).to_text()
    ours = torch.ops.fuser.attention([q], [k], v, captured, None, text)
    plain = _plain(*inputs)
    torch.testing.assert_close(ours, plain)
    weights = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs[:4]),
        torch.autograd.grad((plain * weights).sum(), inputs[:4]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_intermediates_in_place() -> None:
    q, k, v, *captured = (x.detach() for x in _inputs())
    spec = _spec(_mask())
    ours = attend(spec, [q], [k], v, captured, overwrite=True)
    torch.testing.assert_close(ours, attend(spec, [q], [k], v, captured))


@pytest.mark.parametrize("mask", [None, _mask()], ids=["no mask", "mask"])
def test_text(mask: Program | None) -> None:
    spec = _spec(mask)
    text = spec.to_text()
    assert AttentionSpec.from_text(text) == spec
    assert ('"mask"' in text) is (mask is not None)


def test_rounding_of_captured_values_is_their_own() -> None:
    """What is left of a program without half precision still has it where it was captured."""
    builder = ProgramBuilder()
    s, c = builder.input("s0"), builder.input("c0")
    half = builder.graph.call_method("to", (s,), {"dtype": torch.bfloat16})
    program = builder.finish(
        builder.call(operator.add, half, builder.call(rounded, c, "bfloat16"))
    ).widened()
    x = torch.tensor([1.001])
    assert torch.equal(program(s0=x, c0=x), x + 1.0)


def test_only_scores_are_left_when_steps_are_left_out() -> None:
    builder = ProgramBuilder()
    ik, s = builder.input("ik"), builder.input("s0")
    program = builder.finish(builder.call(torch.add, ik, s))
    assert str(program.without({"add"})) == "s0"
