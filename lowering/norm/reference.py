"""The oracle: a chain in plain PyTorch, as the operator `fuser::norm`.

Its gradient recomputes the same plain PyTorch and differentiates that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.program import Program
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


def shape_of_result(spec: NormSpec, index: int, shape: Sequence[Any]) -> tuple[Any, ...]:
    """Of the shape of x, or with one element for each row or group."""
    if index not in spec.by_row:
        return tuple(shape)
    return (*shape[: len(shape) - spec.single], *(1 for _ in range(spec.single)))


def normalise(spec: NormSpec, captured: Sequence[Tensor]) -> list[Tensor]:
    """A chain as `spec` says, with every intermediate in memory.

    Args:
        spec: what is computed.
        captured: of the same rank, broadcasting against each other.

    Returns:
        The results, of the shape that they broadcast to.
    """
    shape = shape_of(captured)
    named = {f"c{i}": c for i, c in enumerate(captured)}
    x = _computed(spec.before, named).expand(shape)
    n = x if spec.bare else _normalised(spec, x.float())
    named["n"] = n.to(spec.norm_dtype)
    if spec.peak is not None:
        dims = list(range(len(shape) - spec.single, len(shape)))
        named["p"] = _computed(spec.peak, named).expand(shape).amax(dims, keepdim=True)
    results = [_result(spec, i, named, shape) for i in range(len(spec.dtypes))]
    results += [] if spec.kept is None else [x]
    return [r.to(dtype) for r, dtype in zip(results, spec.results, strict=True)]


def _normalised(spec: NormSpec, wide: Tensor) -> Tensor:
    shape = wide.shape
    dims = list(range(len(shape) - spec.inner - spec.apart, len(shape)))
    if spec.centred:
        wide = wide - wide.mean(dims, keepdim=True)
        wide = wide - wide.mean(dims, keepdim=True)  # what rounding left of a large mean
    if spec.floor:
        root = torch.linalg.vector_norm(wide, dim=dims, keepdim=True)  # its gradient at 0 is 0
        root = root if spec.summed else root * math.prod(shape[d] for d in dims) ** -0.5
        return wide / root.clamp_min(spec.eps)
    squares = wide.square()
    v = squares.sum(dims, keepdim=True) if spec.summed else squares.mean(dims, keepdim=True)
    return wide / torch.sqrt(v + spec.eps)  # whose gradient has no third power of a deviation


def _result(
    spec: NormSpec, index: int, named: Mapping[str, Tensor], shape: Sequence[int]
) -> Tensor:
    if not spec.parts:
        return _computed(spec.after[index], named).expand(shape_of_result(spec, index, shape))
    apart = {name: t for n, tensor in named.items() for name, t in members(spec, n, tensor).items()}
    outer = shape[: len(shape) - spec.apart]
    each = [_computed(program, apart).expand(outer) for program in spec.programs(index)]
    return together(spec, each)


def members(spec: NormSpec, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor by the names that programs have for it: its members of pairs, where there are."""
    if not spec.parts:
        return {name: tensor}
    every = [tensor]
    for dim in range(-spec.apart, 0):
        every = [each for part in every for each in part.unbind(dim)]
    if len(every) == 1:
        return {name: every[0]}
    return {f"{name}{m}": t for m, t in zip(spec.members, every, strict=False)}


def together(spec: NormSpec, each: Sequence[Tensor]) -> Tensor:
    """One tensor, given its members."""
    if not spec.parts:
        return each[0]
    found = torch.stack([*each], -1)
    return found.unflatten(-1, (-1, 2)) if spec.apart > 1 and len(each) > 1 else found


def _computed(program: Program, named: Mapping[str, Tensor]) -> Tensor:
    return program(**{name: named[name] for name in program.inputs})


@torch.library.custom_op("fuser::norm", mutates_args=())
def norm(captured: Sequence[Tensor], spec: str) -> list[Tensor]:
    """`normalise` as one operator; see `fuser.specs.NormSpec` for the operands."""
    with torch.autocast(captured[0].device.type, enabled=False):
        return [_own(y) for y in normalise(spec_of(spec), captured)]


@norm.register_fake
def _(captured: Sequence[Tensor], spec: str) -> list[Tensor]:
    of, shape = spec_of(spec), shape_of(captured)
    return [
        captured[0].new_empty(shape_of_result(of, i, shape), dtype=dtype)
        for i, dtype in enumerate(of.results)
    ]


@torch.library.custom_op("fuser::norm_backward", mutates_args=())
def norm_backward(
    grads: Sequence[Tensor], captured: Sequence[Tensor], spec: str, needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients of `norm` for the operands where `needs` says so."""
    leaves = [x.detach().requires_grad_(n) for x, n in zip(captured, needs, strict=True)]
    with torch.autocast(captured[0].device.type, enabled=False), differentiable():
        results = normalise(spec_of(spec), leaves)
    wanted = [x for x, n in zip(leaves, needs, strict=True) if n]
    differ = [i for i, y in enumerate(results) if y.requires_grad]
    found = torch.autograd.grad(
        [results[i] for i in differ], wanted, [grads[i] for i in differ], materialize_grads=True
    )
    return [_own(g) for g in found]


def _own(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


@norm_backward.register_fake
def _(
    grads: Sequence[Tensor], captured: Sequence[Tensor], spec: str, needs: Sequence[bool]
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, n in zip(captured, needs, strict=True) if n]


def save(ctx: Any, captured: Sequence[Tensor], spec: str, *more: Tensor) -> None:
    """Saves the operands that gradients are computed from, of others what they are like; and more
    tensors."""
    ctx.spec, ctx.like = spec, [(c.shape, c.dtype) for c in captured]
    ctx.needs = [c.is_floating_point() and c.requires_grad for c in captured]
    ctx.read = spec_of(spec).read_by_gradient([i for i, need in enumerate(ctx.needs) if need])
    ctx.save_for_backward(*more, *(c for i, c in enumerate(captured) if i in ctx.read))


def saved(ctx: Any, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """The operands, of those `tensors` that were saved; zeros without memory for the others."""
    like = next(g for g in grads if g is not None)
    kept = iter(tensors)
    return [
        next(kept) if i in ctx.read else like.new_zeros((), dtype=dtype).expand(shape)
        for i, (shape, dtype) in enumerate(ctx.like)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    ctx.shapes = [y.shape for y in output]
    save(ctx, *inputs)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    captured, needs = saved(ctx, ctx.saved_tensors, grads), ctx.needs
    dtypes = spec_of(ctx.spec).results
    given = [
        captured[0].new_zeros(shape, dtype=dtype) if g is None else g
        for g, dtype, shape in zip(grads, dtypes, ctx.shapes, strict=True)
    ]
    found = iter(norm_backward(given, captured, ctx.spec, needs))
    return [next(found) if n else None for n in needs], None


norm.register_autograd(_backward, setup_context=_save)


def emit_operator(builder: Builder, call: Call, function: Any, *more: Any) -> list[Node]:
    """An operator with the signature of `fuser::norm` (and `more`) on arranged operands."""
    spec: NormSpec = call.spec
    captured = [builder.operand(call.operands[f"c{i}"]) for i in range(spec.captured)]
    results = builder.call(function, captured, spec.to_text(), *more)
    return builder.items(results, len(spec.results))


@register_lowering(NormSpec, order=100)
class Reference(Lowering):
    """`fuser::norm` with its plain PyTorch kernel: always possible, never fast."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def emit(builder: Builder) -> list[Node]:
            return emit_operator(builder, call, torch.ops.fuser.norm.default)

        return Emission(emit, "reference", "takes every program", _SLOWER, {}, WORK)
