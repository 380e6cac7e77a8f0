"""The oracle: a chain in plain PyTorch, as the operator `fuser::norm`.

Its gradient recomputes the same plain PyTorch and differentiates that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import NormSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering

WORK = 100.0
"""Of the reference, in units of a library kernel."""
_SLOWER = "it computes what the region did, operator by operator"


@lru_cache(maxsize=1024)
def spec_of(text: str) -> NormSpec:
    """The spec that an operator's argument describes."""
    return NormSpec.from_text(text)


def shape_of(captured: Sequence[Tensor]) -> tuple[int, ...]:
    """Of the result: that to which operands broadcast."""
    return tuple(torch.broadcast_shapes(*(c.shape for c in captured)))


def normalise(spec: NormSpec, captured: Sequence[Tensor]) -> Tensor:
    """A chain as `spec` says, with every intermediate in memory.

    Args:
        spec: what is computed.
        captured: of the same rank, broadcasting against each other.

    Returns:
        A tensor of the shape that they broadcast to.
    """
    shape = shape_of(captured)
    named = {f"c{i}": c for i, c in enumerate(captured)}
    x = spec.before(**_read(spec.before, named)).expand(shape).float()
    dims = list(range(len(shape) - spec.inner, len(shape)))
    if spec.centred:
        x = x - x.mean(dims, keepdim=True)
    squares = x.square()
    v = squares.sum(dims, keepdim=True) if spec.summed else squares.mean(dims, keepdim=True)
    if spec.floor:
        n = x / v.sqrt().clamp_min(spec.eps)
    else:
        n = x * torch.rsqrt(v + spec.eps)
    named["n"] = n.to(spec.norm_dtype)
    return spec.after(**_read(spec.after, named)).to(spec.dtype).expand(shape)


def _read(program: Any, named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: named[name] for name in program.inputs}


@torch.library.custom_op("fuser::norm", mutates_args=())
def norm(captured: Sequence[Tensor], spec: str) -> Tensor:
    """`normalise` as one operator; see `fuser.specs.NormSpec` for the operands."""
    with torch.autocast(captured[0].device.type, enabled=False):
        return normalise(spec_of(spec), captured).contiguous()


@norm.register_fake
def _(captured: Sequence[Tensor], spec: str) -> Tensor:
    return captured[0].new_empty(shape_of(captured), dtype=spec_of(spec).dtype)


@torch.library.custom_op("fuser::norm_backward", mutates_args=())
def norm_backward(
    grad: Tensor, captured: Sequence[Tensor], spec: str, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `norm` for the operands where `needs` says so."""
    leaves = [x.detach().requires_grad_(n) for x, n in zip(captured, needs, strict=True)]
    with torch.autocast(grad.device.type, enabled=False), differentiable():
        out = normalise(spec_of(spec), leaves)
    wanted = [x for x, n in zip(leaves, needs, strict=True) if n]
    found = torch.autograd.grad(out, wanted, grad, allow_unused=True)
    return [
        torch.zeros(x.shape, dtype=x.dtype, device=x.device) if g is None else _own(g)
        for g, x in zip(found, wanted, strict=True)
    ]


def _own(grad: Tensor) -> Tensor:
    return grad.clone(memory_format=torch.contiguous_format)


@norm_backward.register_fake
def _(
    grad: Tensor, captured: Sequence[Tensor], spec: str, needs: Sequence[bool]
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, n in zip(captured, needs, strict=True) if n]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    captured, ctx.spec = inputs
    ctx.save_for_backward(*captured)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    captured = list(ctx.saved_tensors)
    needs = [x.is_floating_point() and x.requires_grad for x in captured]
    found = iter(norm_backward(grad, captured, ctx.spec, needs))
    return [next(found) if n else None for n in needs], None


norm.register_autograd(_backward, setup_context=_save)


def emit_operator(builder: Builder, call: Call, function: Any, *more: Any) -> Node:
    """An operator with the signature of `fuser::norm` (and `more`) on arranged operands."""
    spec: NormSpec = call.spec
    captured = [builder.operand(call.operands[f"c{i}"]) for i in range(spec.captured)]
    return builder.call(function, captured, spec.to_text(), *more)


@register_lowering(NormSpec, order=100)
class Reference(Lowering):
    """`fuser::norm` with its plain PyTorch kernel: always possible, never fast."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def emit(builder: Builder) -> Node:
            return emit_operator(builder, call, torch.ops.fuser.norm.default)

        return Emission(emit, "reference", "takes every program", _SLOWER, {}, WORK)
