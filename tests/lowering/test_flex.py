"""FlexAttention as an operator: what surrounds it in a graph, its layout, and its failing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fuser.errors import FuserWarning
from fuser.graph.program import IDENTITY_TEXT, Program, ProgramBuilder
from fuser.lowering.attention import flex_kernel
from fuser.specs import AttentionSpec
from tests.compiled import assert_near, compiled, run, wide
from tests.every import some


class Projected(nn.Module):
    """Attention with a softcap between a projection and a projection, with fewer key heads."""

    def __init__(self, dtype: torch.dtype = torch.float32, seed: int = 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.qkv = nn.Linear(48, 16 * (4 + 2 + 2), dtype=dtype)
        self.out = nn.Linear(64, 48, dtype=dtype)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(x).split([64, 32, 32], -1)
        q, k, v = (t.unflatten(-1, (-1, 16)).transpose(1, 2) for t in (q, k, v))
        return q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        rows = torch.arange(q.shape[2], device=x.device)
        slope = torch.tensor([0.5, 0.25, 0.125, 0.0625]).to(x.dtype)[:, None, None]
        distance = (rows[:, None] - rows).abs() * slope
        scores = torch.tanh(q @ k.mT * 0.25 / 3.0) * 3.0 - distance.to(x.dtype)
        gain = torch.linspace(0.5, 1.5, k.shape[2]).to(x.dtype)
        return torch.softmax(scores * gain, -1) @ v

    def forward(self, x: Tensor) -> Tensor:
        out = self.attend(x) * 2.0 + 1.0
        return x + self.out(out.transpose(1, 2).flatten(2)).relu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_between_projections_through_code_generation(dtype: torch.dtype) -> None:
    """Views of a projection, products below, constants and half-precision tensors beside it."""
    module, double = Projected(dtype), Projected(torch.float64)
    double.load_state_dict(module.state_dict())
    inputs = (torch.randn(2, 100, 48, dtype=dtype),)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FuserWarning)
        ours = compiled(module, inputs, inner="inductor")
    (rewrite,) = (r for r in ours.record.rewritten if r.pattern.startswith("attention."))
    assert rewrite.lowering == "flex_attention"
    assert_near(ours, run(module, inputs), run(double, wide(inputs)))


def _spec(*, factor: float = 1.0, captured: int = 1) -> AttentionSpec:
    builder = ProgramBuilder()
    s, c = builder.input("s0"), builder.input("c0")
    scaled = builder.call(torch.mul, s, factor)
    program = builder.finish(builder.call(torch.add, builder.call(torch.tanh, scaled), c))
    wide = torch.float32
    return AttentionSpec(1, captured, program, Program(IDENTITY_TEXT), wide, wide, wide)


def _operands(order: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[Any, ...]:
    """q, k, v and a bias; dimensions of q lie in memory in the given order."""
    torch.manual_seed(3)
    sizes = (2, 4, 70, 16)
    back = [order.index(d) for d in range(4)]
    q = torch.randn([sizes[d] for d in order]).permute(back)
    return q, torch.randn(2, 2, 70, 16), torch.randn(2, 2, 70, 8), [torch.randn(1, 4, 1, 70)]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (3, 1, 0, 2)])
@pytest.mark.parametrize("mask", [("none", 0), ("causal", 0), ("sliding window", 9)])
def test_layout_is_as_declared(order: tuple[int, ...], mask: tuple[str, int]) -> None:
    arguments = (*_operands(order), _spec().to_text(), *mask, False)
    torch.library.opcheck(flex_kernel.OPERATOR, arguments, test_utils=("test_faketensor",))
    q = arguments[0]
    out = flex_kernel.OPERATOR(*arguments)
    assert sorted(range(4), key=lambda d: -out.stride(d)) == list(order)
    assert out.shape == (*q.shape[:3], 8)


def test_code_and_blocks_agree() -> None:
    for mask in some((("none", 0), ("causal", 0), ("sliding window", 9), ("prefix", 20)), 2, 1):
        arguments = (*_operands((0, 2, 1, 3)), _spec(factor=0.3).to_text(), *mask)
        code, plain = (flex_kernel.OPERATOR(*arguments, c) for c in (True, False))
        assert code.stride() == plain.stride()
        torch.testing.assert_close(code, plain, rtol=1e-5, atol=1e-5)


def test_a_failure_costs_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("no template today")

    monkeypatch.setattr(flex_kernel, "public", broken)
    monkeypatch.setattr(flex_kernel, "_failed", set())
    arguments = (*_operands(), _spec(factor=0.7).to_text(), "causal", 0)
    with pytest.warns(FuserWarning, match="computed in blocks instead: .*") as caught:
        first = flex_kernel.OPERATOR(*arguments, True)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = flex_kernel.OPERATOR(*arguments, True)
    torch.testing.assert_close(first, flex_kernel.OPERATOR(*arguments, False), rtol=0, atol=0)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
