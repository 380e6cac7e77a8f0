"""Operands that are written to between their making and their reading: no views, no copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import Run, assert_near, compiled, run, wide

Written = Callable[[Tensor], Tensor]


def _compare(fn: Callable[..., Tensor], grad: bool, heads: int = 2) -> Run:
    generator = torch.Generator().manual_seed(4)
    shapes = [(1, 4, 6, 8), (1, heads, 7, 8), (1, heads, 7, 8)]
    inputs = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    ours, eager = compiled(fn, inputs, grad=grad), run(fn, inputs, grad=grad)
    assert_near(ours, eager, run(fn, wide(inputs), grad=grad))
    return ours


def _scaled(x: Tensor) -> Tensor:
    x.mul_(0.125)
    return x


def _cut(x: Tensor) -> Tensor:
    x[:, :, 4:] = 0
    return x


def _through_a_view(x: Tensor) -> Tensor:
    x.flatten(0, 1)[1:].add_(1)
    return x


def _masked(x: Tensor) -> Tensor:
    x.masked_fill_(torch.arange(x.shape[2])[:, None] > 3, 0)
    return x


WRITES = [_scaled, _cut, _through_a_view, _masked]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_transposed_copy(write: Written, grad: bool) -> None:
    """k is laid out anew, and that is written to."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ write(k.transpose(-1, -2).contiguous())).softmax(-1) @ v

    _compare(fn, grad, heads=4)


def _native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _native_masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _by_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.4).softmax(-1) @ v


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("attend", [_native, _native_masked, _by_softmax])
@pytest.mark.parametrize("write", WRITES)
def test_repeated_heads(write: Written, attend: Callable[..., Tensor], grad: bool) -> None:
    """Heads are repeated into memory of their own, and that is written to."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = write(k.repeat_interleave(2, 1).contiguous())
        return attend(q, k, write(v.repeat_interleave(2, 1).clone()))

    _compare(fn, grad)


@pytest.mark.parametrize("attend", [_native_masked, _by_softmax])
def test_source_written_after_the_copy(attend: Callable[..., Tensor]) -> None:
    """The copy keeps what its source no longer has."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        source = v * 1
        copied = source.repeat_interleave(2, 1)
        source.zero_()
        return attend(q, k.repeat_interleave(2, 1), copied)

    _compare(fn, grad=False)


@pytest.mark.parametrize("attend", [_native_masked, _by_softmax])
def test_copy_written_after_it_was_read(attend: Callable[..., Tensor]) -> None:
    """What happens afterwards is no concern of the region in inference."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        copied = v.repeat_interleave(2, 1).clone()
        out = attend(q, k.repeat_interleave(2, 1), copied)
        return out + copied.mul_(2).sum()

    assert _compare(fn, grad=False).rewrites() == 1


@pytest.mark.parametrize("grad", [False, True])
def test_widened_copy(grad: bool) -> None:
    """A cast copies; a cast to the same dtype does not."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide, same = k.bfloat16().to(q.dtype), (v * 1).to(v.dtype)
        return _by_softmax(q, _scaled(wide), _cut(same))

    _compare(fn, grad, heads=4)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_mask_written_in_place(when: str, grad: bool) -> None:
    """What the region reads is as it stands where the original read it."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.zeros(6, 7, dtype=q.dtype)
        if when == "before":
            mask[:, 4:] = -torch.inf
        scores = q @ k.mT
        if when == "between":
            mask[:, 4:] = -torch.inf
        scores = scores + mask
        if when == "after":
            mask[:, 4:] = -torch.inf
        return scores.softmax(-1) @ v + mask.isinf().sum()

    assert _compare(fn, grad, heads=4).rewrites() == (when != "after")
