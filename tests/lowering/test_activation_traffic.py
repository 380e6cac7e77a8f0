"""Generated kernels of activations move few more bytes than they must, counted as they run.

What must be moved: every large operand once, and the result; in the backward the operands that the
derivative reads, the gradient of the result, and those of large operands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fuser.lowering.activation.generated import problem
from fuser.lowering.activation.operands import reads
from fuser.lowering.triton import launch
from fuser.specs import ActivationSpec
from tests.lowering.activations import (
    activation,
    clamped,
    dyt,
    generated,
    halves,
    operands,
    ordered,
    residual,
    swiglu,
)
from tests.lowering.traffic import traffic

MOST = 1.1
LARGE = (1, 32, 128)
CASES: dict[str, tuple[ActivationSpec, list[Any], tuple[int, ...]]] = {
    "two": (activation(swiglu, 1, 1), [LARGE, LARGE], ()),
    "halves": (activation(halves, 2), [(2, 32, 128)], (1, 0, 2)),
    "in turn": (activation(clamped, 2), [(2, 32, 128)], (1, 2, 0)),
    "DyT": (activation(dyt, 1, 1, 1, 1), [LARGE, (1, 1, 1), (1, 1, 128), (1, 1, 128)], ()),
    "residual": (
        activation(residual, 1, 1, 1), [(1, 2, 32, 64), (1, 2, 1, 64), (1, 2, 32, 64)], ()
    ),
}  # fmt: skip
"""A spec, shapes, and the order of the first operand in memory."""


@pytest.mark.parametrize("name", CASES)
def test_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program has many rows, as on a GPU where there are many, so that few add up a share."""
    monkeypatch.setattr(launch, "INTERPRETER", replace(launch.INTERPRETER, processors=1))
    spec, shapes, order = CASES[name]
    x = operands(*shapes)
    if order:
        x[0] = ordered(x[0], *order)
    large = max(map(_bytes, x))
    whole = [t for t in x if _bytes(t) == large]
    with traffic(problem, large - 1) as moved:
        y = generated(spec, x)
    assert 1.0 <= moved.bytes / sum(map(_bytes, [*x, y])) <= MOST
    read = reads(spec, [True] * len(x))
    again = [t for t, is_read in zip(x, read, strict=True) if is_read and _bytes(t) == large]
    with traffic(problem, large - 1) as moved:
        torch.autograd.grad(y, x, torch.ones_like(y))
    assert 1.0 <= moved.bytes / sum(map(_bytes, [*again, y, *whole])) <= MOST
    assert {n for n in moved.read[0] if n.startswith("c")} <= {
        f"c{j}" for j, is_read in enumerate(read) if is_read
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
