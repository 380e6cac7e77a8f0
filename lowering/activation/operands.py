"""Operands of an activation: their parts, their shape, and which of them a gradient needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fuser.specs import ActivationSpec
from fuser.torch_private import known_true

from ..triton.trace import Input


@lru_cache(maxsize=1024)
def spec_of(text: str) -> ActivationSpec:
    """The spec that an operator's argument describes."""
    return ActivationSpec.from_text(text)


def shape_of(captured: Sequence[Tensor]) -> tuple[Any, ...]:
    """Of the result: that to which operands broadcast, but for the dimension of parts."""
    return tuple(torch.broadcast_shapes(*(c.shape[1:] for c in captured)))


def has_shape(tensor: Tensor, shape: Sequence[Any]) -> bool:
    return all(known_true(a == b) for a, b in zip(tensor.shape, shape, strict=True))


def model_of(captured: Sequence[Tensor]) -> Tensor | None:
    """The first operand, or first part of one, that is not broadcast."""
    shape = shape_of(captured)
    return next((c[0] for c in captured if has_shape(c[0], shape)), None)


def result_of(spec: ActivationSpec, captured: Sequence[Tensor]) -> Tensor:
    """An empty result, in the order in memory of the first operand that is not broadcast."""
    model = model_of(captured)
    if model is None:
        return captured[0].new_empty(shape_of(captured), dtype=spec.dtype)
    return torch.empty_like(model, dtype=spec.dtype)


def inputs_of(spec: ActivationSpec, dtypes: Sequence[torch.dtype]) -> dict[str, Input]:
    """What the program is given."""
    return {name: Input(dtypes[operand]) for name, (operand, _) in spec.named.items()}


def reads(spec: ActivationSpec, needs: Sequence[bool]) -> list[bool]:
    """Which operands the gradients of those that want one are computed from."""
    read = spec.read_by_gradient([j for j, need in enumerate(needs) if need])
    return [j in read for j in range(len(needs))]


def gradients_of(
    grad: Tensor, captured: Sequence[Tensor], spec: ActivationSpec, needs: Sequence[bool]
) -> list[Tensor]:
    """Empty gradients, in the order in memory of what they are of; of an operand that was not
    saved, in that of `grad`."""
    found: list[Tensor] = []
    for operand, read, need in zip(captured, reads(spec, needs), needs, strict=True):
        if not need:
            continue
        if not read and has_shape(operand, (1, *grad.shape)):
            found.append(torch.empty_like(grad, dtype=operand.dtype)[None])
        else:
            found.append(torch.empty_like(operand))
    return found


# -- what autograd keeps


def save(ctx: Any, captured: Sequence[Tensor], spec: str) -> None:
    """Saves the operands that gradients are computed from, and of others what they are like."""
    ctx.needs = [c.is_floating_point() and c.requires_grad for c in captured]
    ctx.read = reads(spec_of(spec), ctx.needs)
    ctx.like = [(c.shape, c.dtype) for c in captured]
    ctx.save_for_backward(*(c for c, read in zip(captured, ctx.read, strict=True) if read))


def saved(ctx: Any, grad: Tensor) -> list[Tensor]:
    """The operands; zeros without memory for those that were not saved."""
    kept = iter(ctx.saved_tensors)
    return [
        next(kept) if read else grad.new_zeros((), dtype=dtype).expand(shape)
        for read, (shape, dtype) in zip(ctx.read, ctx.like, strict=True)
    ]
