"""By default a chain is rewritten where something measured says that it pays: on a CPU with a
backward, in fp32, alone or with channels last."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiled import compiled


def layer_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.layer_norm(x, (8,), w, w)


def activated(x: Tensor, w: Tensor) -> Tensor:
    return F.gelu(F.layer_norm(x, (8,), w, w))


def rms(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, (8,), w)


def group_norm(x: Tensor, w: Tensor) -> Tensor:
    return F.silu(F.group_norm(x, 2, w, w))


def spelled_rms(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def spelled(x: Tensor, w: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6) * w + w


ROWS, IMAGE = torch.randn(4, 8), torch.randn(2, 8, 4, 4)
LAST = IMAGE.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("fn", "x", "grad", "why"),
    [
        (layer_norm, ROWS, True, ""),
        (group_norm, LAST, True, ""),
        (layer_norm, ROWS, False, "without a backward"),
        (group_norm, LAST, False, ""),
        (group_norm, LAST.bfloat16(), False, ""),
        (group_norm, IMAGE, False, "here they do not"),
        (layer_norm, ROWS.bfloat16(), True, "half precision"),
        (group_norm, LAST.bfloat16(), True, ""),
        (group_norm, IMAGE, True, "here they do not"),
        (activated, ROWS, True, "what stands around it"),
        (rms, ROWS, True, "no kernel of its own"),
        (spelled_rms, ROWS, False, "no kernel of its own"),
        (spelled, ROWS, True, "loses digits where the mean is large"),
    ],
)
def test_what_pays(fn: Callable[..., Tensor], x: Tensor, grad: bool, why: str) -> None:
    w = torch.randn(8, dtype=x.dtype)
    args = tuple(t.detach().clone().requires_grad_(grad) for t in (x, w))
    found = compiled(fn, args, grad=grad, policy="auto")
    assert found.rewrites("norm") == (not why)
    assert why in found.reasons()
