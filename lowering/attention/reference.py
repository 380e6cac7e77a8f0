"""The oracle: plain PyTorch in the original order, as the operator `fuser::attention`.

The operator carries its spec as text. Its gradient recomputes the same plain PyTorch and
differentiates that, in ordinary operators that AOTAutograd traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.graph.program import POSITIONS, SIZES
from fuser.pattern import Call
from fuser.specs import AttentionSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from . import cost


@lru_cache(maxsize=1024)
def _spec(text: str) -> AttentionSpec:
    return AttentionSpec.from_text(text)


def attend(
    spec: AttentionSpec,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None = None,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Softmax attention as `spec` says, with every intermediate in memory.

    Args:
        spec: what is computed.
        q: each `(B, H, Sq, D_i)`.
        k: each `(B, Hkv, Sk, D_i)`.
        v: `(B, Hkv, Sk, Dv)`.
        captured: 0-d, or broadcasting against `(B, H, Sq, Sk)`; of any shape where only gathered.
        seed: of the dropout, one int64 element.
        overwrite: intermediates share memory where they can; no gradient can be taken.

    Returns:
        `(B, H, Sq, Dv)`.
    """
    named = {f"c{i}": c for i, c in enumerate(captured)}
    named.update(_positions(spec, q[0], k[0]))
    scores = {
        f"s{i}": torch.matmul(a, _repeat(b, a.shape[1]).mT)
        for i, (a, b) in enumerate(zip(q, k, strict=True))
    }
    if overwrite:
        score = spec.score.consume(scores, **scores, **named)
    else:
        score = spec.score(**scores, **named)
    score = score.expand(*next(iter(scores.values())).shape)
    if spec.mask is not None:
        score = torch.where(spec.mask(**named), score, -torch.inf)
    p = _softmax(spec, score, named)
    if spec.dropout:
        p = _dropout(p, spec.dropout, seed)
    p = spec.probs(p=p, **named)
    v = _repeat(v, q[0].shape[1])
    return torch.matmul(p.to(v.dtype), v)


def _positions(spec: AttentionSpec, q: Tensor, k: Tensor) -> dict[str, Any]:
    """Positions and sizes that programs read, each along its own dimension of (B, H, Sq, Sk)."""
    read = {name for program in spec.programs for name in program.inputs}
    sizes = (*q.shape[:3], k.shape[2])
    found: dict[str, Any] = dict(zip(SIZES, sizes, strict=True))
    for dim, (name, size) in enumerate(zip(POSITIONS, sizes, strict=True)):
        if name in read:
            shape = [size if d == dim else 1 for d in range(4)]
            found[name] = torch.arange(size, device=q.device).reshape(shape)
    return found


def _softmax(spec: AttentionSpec, score: Tensor, named: dict[str, Tensor]) -> Tensor:
    if not spec.sink and spec.dead_rows_are_zero:
        dead = (score == -torch.inf).all(-1, keepdim=True)
        p = torch.softmax(score.masked_fill(dead, 0), -1, dtype=spec.softmax_dtype)
        return p.masked_fill(dead, 0)
    if not spec.sink:
        return torch.softmax(score, -1, dtype=spec.softmax_dtype)
    column = score.new_zeros(()) if spec.sink == "0" else named[spec.sink]
    joined = torch.cat([score, column.to(score.dtype).expand(*score.shape[:-1], 1)], -1)
    return torch.softmax(joined, -1, dtype=spec.softmax_dtype)[..., :-1]


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _dropout(p: Tensor, probability: float, seed: Tensor | None) -> Tensor:
    generator = torch.Generator(device=p.device)
    generator.manual_seed(0 if seed is None else int(seed.item()))
    kept = torch.empty_like(p).bernoulli_(1 - probability, generator=generator)
    return p * kept / (1 - probability)


@torch.library.custom_op("fuser::attention", mutates_args=())
def attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
) -> Tensor:
    """`attend` as one operator; see `fuser.specs.AttentionSpec` for the operands."""
    with torch.autocast(v.device.type, enabled=False):
        return attend(_spec(spec), q, k, v, captured, seed).contiguous()


@attention.register_fake
def _(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
) -> Tensor:
    batch, heads, rows, _ = q[0].shape
    return v.new_empty(batch, heads, rows, v.shape[-1])


@torch.library.custom_op("fuser::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `attention` for q, k, v and captured, in this order, where `needs` says so."""
    inputs = [*q, *k, v, *captured]
    with torch.autocast(v.device.type, enabled=False):
        return _differentiate(_spec(spec), grad, inputs, len(q), seed, needs)


def _differentiate(
    spec: AttentionSpec,
    grad: Tensor,
    inputs: Sequence[Tensor],
    products: int,
    seed: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Recomputes the forward with gradients recorded, and differentiates it."""
    leaves = [x.detach().requires_grad_(n) for x, n in zip(inputs, needs, strict=True)]
    q, k = leaves[:products], leaves[products : 2 * products]
    v, captured = leaves[2 * products], leaves[2 * products + 1 :]
    with differentiable():
        out = attend(spec, q, k, v, captured, seed)
    wanted = [x for x, n in zip(leaves, needs, strict=True) if n]
    grads = torch.autograd.grad(out, wanted, grad, materialize_grads=True)
    return [g.clone(memory_format=torch.contiguous_format) for g in grads]


@attention_backward.register_fake
def _(
    grad: Tensor,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    inputs = [*q, *k, v, *captured]
    return [x.new_empty(x.shape) for x, n in zip(inputs, needs, strict=True) if n]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, captured, seed, spec = inputs
    ctx.counts, ctx.spec, ctx.has_seed = (len(q), len(captured)), spec, seed is not None
    ctx.save_for_backward(*q, *k, v, *captured, *([seed] if seed is not None else []))


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    products, count = ctx.counts
    saved = list(ctx.saved_tensors)
    seed = saved.pop() if ctx.has_seed else None
    q, k = saved[:products], saved[products : 2 * products]
    v, captured = saved[2 * products], saved[2 * products + 1 :]
    floating = [x.is_floating_point() and x.requires_grad for x in saved]
    grads = iter(attention_backward(grad, q, k, v, captured, seed, ctx.spec, floating))
    full = [next(grads) if needed else None for needed in floating]
    return (
        full[:products],
        full[products : 2 * products],
        full[2 * products],
        full[2 * products + 1 :][:count],
        None,
        None,
    )


attention.register_autograd(_backward, setup_context=_save)


_SLOWER = "it computes what the region did, operator by operator"


@register_lowering(AttentionSpec, order=100)
class Reference(Lowering):
    """`fuser::attention` with its plain PyTorch kernel: always possible, never fast."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def emit(builder: Builder) -> Node:
            return emit_operator(builder, call)

        return Emission(emit, "reference", "takes every program", _SLOWER, {}, cost.REFERENCE)


def emit_operator(
    builder: Builder,
    call: Call,
    function: Any = None,
    *more: Any,
    captured: Callable[[str], Node] | None = None,
) -> Node:
    """An operator with the signature of `fuser::attention` (and `more`) on arranged operands.

    `captured` puts a captured operand there, by name, where that is not `builder.operand`.
    """
    spec: AttentionSpec = call.spec
    q, k, v = operands(builder, call)
    make = captured or (lambda name: builder.operand(call.operands[name]))
    tensors = []
    for i in range(spec.captured):
        node = make(f"c{i}")
        if not isinstance(value(node), Tensor):
            node = builder.call(
                torch.scalar_tensor, node, dtype=torch.float64, device=value(v).device
            )
        tensors.append(node)
    seed = None
    if spec.dropout:
        seed = builder.unshared(torch.randint, 2**62, (1,), device=value(v).device)
    function = torch.ops.fuser.attention.default if function is None else function
    return builder.call(function, q, k, v, tensors, seed, spec.to_text(), *more)


def operands(builder: Builder, call: Call) -> tuple[list[Node], list[Node], Node]:
    """q, k and v in their canonical arrangement, every batch dimension at its full size."""
    count = call.spec.contractions
    q = [builder.operand(call.operands[f"q{i}"], materialise=True) for i in range(count)]
    k = [builder.operand(call.operands[f"k{i}"], materialise=True) for i in range(count)]
    return q, k, builder.operand(call.operands["v"], materialise=True)
