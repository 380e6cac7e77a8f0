"""`fuser::chunked_attention`: any score program on the CPU, a block of queries at a time.

For programs that no library kernel takes (a softcap, say): nothing of size Sq x Sk is ever made,
and the backward recomputes each block. Everything is computed in fp32, whatever the dtype of q, k
and v. It saves memory, not time: docs/decisions.md has the figures, and why `auto` declines it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value
from fuser.pattern import Call
from fuser.specs import AttentionSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from . import cost
from .dtypes import narrower, rounds_coarsely
from .reference import attend, emit_operator

BLOCK = 1 << 19
"""Scores in one block: 2 MiB in fp32, about a core's share of the cache."""


@lru_cache(maxsize=1024)
def _wide_spec(text: str) -> AttentionSpec:
    """The spec with every rounding to half precision left out."""
    spec = AttentionSpec.from_text(text)
    wide = torch.float32
    return replace(
        spec,
        score=spec.score.widened(),
        probs=spec.probs.widened(),
        dtype=wide,
        score_dtype=wide,
        softmax_dtype=wide,
    )


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and rows, each of at most `BLOCK` scores where one row is not more."""
    batch, heads, rows, _ = q.shape
    row = max(1, heads * k.shape[2])
    height = min(rows, max(16, BLOCK // row))
    together = max(1, BLOCK // (row * max(height, 1))) if height == rows else 1
    for b in range(0, batch, together):
        for i in range(0, rows, max(height, 1)):
            yield slice(b, min(b + together, batch)), slice(i, min(i + height, rows))


def _take(x: Tensor, batch: slice, rows: slice | None) -> Tensor:
    """The part of a (broadcast) operand that a block reads."""
    if x.ndim < 4:
        return x
    if x.shape[0] != 1:
        x = x[batch]
    return x if rows is None or x.shape[2] == 1 else x[:, :, rows]


def _widened(x: Tensor) -> Tensor:
    """Half precision as fp32: the program has no half precision in it any more."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x


def _attend(spec: AttentionSpec, parts: Sequence[Tensor], count: int) -> Tensor:
    """The reference on one block; `parts` are q, k, v and captured, one after the other."""
    q, k, v = parts[:count], parts[count : 2 * count], parts[2 * count]
    captured = parts[2 * count + 1 :]
    return attend(spec, q, k, v, captured, overwrite=not torch.is_grad_enabled())


@torch.library.custom_op("fuser::chunked_attention", mutates_args=(), device_types="cpu")
def chunked_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
) -> Tensor:
    """Attention as a spec says, block by block; operands as of `fuser::attention`.

    Args:
        q: each `(B, H, Sq, D_i)`.
        k: each `(B, Hkv, Sk, D_i)`.
        v: `(B, Hkv, Sk, Dv)`.
        captured: 0-d, or broadcasting against `(B, H, Sq, Sk)`.
        seed: unused; there is no dropout here.
        spec: text of an `AttentionSpec`.

    Returns:
        `(B, H, Sq, Dv)`, contiguous, in the dtype of v.
    """
    wide = _wide_spec(spec)
    q32, k32, v32 = [x.float() for x in q], [x.float() for x in k], v.float()
    captured = [_widened(x) for x in captured]
    out = v.new_empty(*q[0].shape[:3], v.shape[-1])
    with torch.autocast(v.device.type, enabled=False), torch.no_grad():
        for batch, rows in _blocks(q[0], k[0]):
            parts = [
                *(_take(x, batch, rows) for x in q32),
                *(x[batch] for x in k32),
                v32[batch],
                *(_take(x, batch, rows) for x in captured),
            ]
            out[batch, :, rows] = _attend(wide, parts, len(q))
    return out


@chunked_attention.register_fake
def _(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
) -> Tensor:
    return v.new_empty(*q[0].shape[:3], v.shape[-1])


@torch.library.custom_op("fuser::chunked_attention_backward", mutates_args=(), device_types="cpu")
def chunked_attention_backward(
    grad: Tensor,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    spec: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of q, k, v and captured, in this order, where `needs` says so."""
    wide = _wide_spec(spec)
    inputs = [*q, *k, v, *captured]
    count = len(q)
    leaves = [_widened(x) for x in inputs]
    totals = [torch.zeros_like(x) if n else None for x, n in zip(leaves, needs, strict=True)]
    with torch.autocast(v.device.type, enabled=False):
        for batch, rows in _blocks(q[0], k[0]):
            by_row = [True] * count + [False] * (count + 1) + [True] * len(captured)
            parts = [
                _take(x, batch, rows if r else None).detach().requires_grad_(n)
                for x, n, r in zip(leaves, needs, by_row, strict=True)
            ]
            with differentiable():
                out = _attend(wide, parts, count)
            wanted = [p for p, n in zip(parts, needs, strict=True) if n]
            found = iter(
                torch.autograd.grad(out, wanted, grad[batch, :, rows].float(), allow_unused=True)
            )
            for total, r, n in zip(totals, by_row, needs, strict=True):
                part = next(found) if n else None
                if total is not None and part is not None:
                    _take(total, batch, rows if r else None).add_(part)
    return [t.to(x.dtype) for t, x in zip(totals, inputs, strict=True) if t is not None]


@chunked_attention_backward.register_fake
def _(
    grad: Tensor,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    spec: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    inputs = [*q, *k, v, *captured]
    return [torch.empty_like(x) for x, n in zip(inputs, needs, strict=True) if n]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, captured, _, ctx.spec = inputs
    ctx.count = len(q)
    ctx.save_for_backward(*q, *k, v, *captured)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    saved, count = list(ctx.saved_tensors), ctx.count
    needs = [x.is_floating_point() and x.requires_grad for x in saved]
    q, k, v = saved[:count], saved[count : 2 * count], saved[2 * count]
    captured = saved[2 * count + 1 :]
    grads = iter(chunked_attention_backward(grad, q, k, v, captured, ctx.spec, needs))
    full = [next(grads) if n else None for n in needs]
    return (
        full[:count], full[count : 2 * count], full[2 * count], full[2 * count + 1 :], None, None,
    )  # fmt: skip


chunked_attention.register_autograd(_backward, setup_context=_save)


@register_lowering(AttentionSpec, order=20)
class ChunkedAttention(Lowering):
    """Programs that no library kernel takes, on the CPU."""

    name: ClassVar[str] = "aten.chunked"
    kind: ClassVar[str] = "aten"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        spec: AttentionSpec = call.spec
        if context.device.type == "cuda":
            return Refusal("on a GPU the generated kernel keeps no scores either, in one launch")
        if context.device.type != "cpu":
            return Refusal("used on CPUs alone")
        if spec.dropout:
            return Refusal("the chunked kernel does not drop probabilities")
        if narrower(spec.score_dtype, spec.dtype) or rounds_coarsely(spec.score, spec.dtype):
            return Refusal("scores are rounded more coarsely than the result")
        if rounds_coarsely(spec.probs, spec.dtype):
            return Refusal("probabilities are rounded more coarsely than the result")

        def emit(builder: Builder) -> Node:
            out = emit_operator(builder, call, torch.ops.fuser.chunked_attention.default)
            if value(out).dtype != spec.dtype:
                out = builder.method("to", out, dtype=spec.dtype)
            return out

        why = "no library kernel takes the program; nothing of size Sq x Sk is made"
        return Emission(emit, "aten.chunked", why, cost.slower_in_chunks(spec), {}, cost.CHUNKED)
