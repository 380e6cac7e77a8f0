"""Attention inside torch.func transforms: left alone, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compiled import compiled, run


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * 0.3, -1) @ v


def _vmapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.func.vmap(_attend)(q, k, v)


def _shared_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.func.vmap(_attend, in_dims=(0, None, None))(q, k[0], v[0])


def _differentiated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.func.grad(lambda a: _attend(a, k, v).square().sum())(q)


def _pushed_forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.func.jvp(lambda a: _attend(a, k, v), (q,), (q,))[1]


# torch loads its forward-mode formulas through torch.jit.script
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("fn", [_vmapped, _shared_keys, _differentiated, _pushed_forward])
def test_transforms_are_left_alone(fn: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(3, 4, 16, 8, generator=generator) for _ in range(3)]
    ours, eager = compiled(fn, inputs), run(fn, inputs)
    assert ours.rewrites() == 0
    assert "torch.func transform" in ours.reasons()
    torch.testing.assert_close(ours.outputs, eager.outputs)


@pytest.mark.parametrize("fn", [_vmapped, _shared_keys])
def test_the_reason_is_the_same_in_training(fn: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(3, 4, 16, 8, generator=generator).requires_grad_() for _ in range(3)]
    ours, eager = compiled(fn, inputs, grad=True), run(fn, inputs, grad=True)
    assert ours.rewrites() == 0
    assert ours.reasons() == "it runs inside a torch.func transform"
    torch.testing.assert_close(ours.grads, eager.grads)
