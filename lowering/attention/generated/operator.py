"""`fuser::generated_attention`: attention as a spec says, by kernels that are generated for it.

On a GPU the operator opens into kernel launches that Inductor sees; in Triton's interpreter it
stays closed, around an operator that runs the same kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import launch


@torch.library.custom_op("fuser::interpreted_attention", mutates_args=(), device_types="cpu")
def interpreted_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`generated_attention` in Triton's interpreter."""
    return launch.forward(launch.problem(spec, q, k, v, captured, seed, origin))


@interpreted_attention.register_fake
def _(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = q[0].shape[:3]
    dtype = launch.result_dtype(spec)
    row_max, row_sum = (v.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return v.new_empty(*rows, v.shape[-1], dtype=dtype), row_max, row_sum


@torch.library.custom_op(
    "fuser::interpreted_attention_backward", mutates_args=(), device_types="cpu"
)
def interpreted_attention_backward(
    grad: Tensor,
    out: Tensor,
    row_max: Tensor,
    row_sum: Tensor,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """`generated_attention_backward` in Triton's interpreter."""
    of = launch.problem(spec, q, k, v, captured, seed, origin)
    return launch.backward(of, grad, out, row_max, row_sum, needs)


@interpreted_attention_backward.register_fake
def _(
    grad: Tensor,
    out: Tensor,
    row_max: Tensor,
    row_sum: Tensor,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    inputs = [*q, *k, v, *captured]
    return [x.new_empty(x.shape) for x, n in zip(inputs, needs, strict=True) if n]


@torch.library.triton_op("fuser::generated_attention", mutates_args=())
def generated_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention as a spec says.

    Args:
        q: each `(B, H, Sq, D_i)`.
        k: each `(B, Hkv, Sk, D_i)`.
        v: `(B, Hkv, Sk, Dv)`.
        captured: 0-d, or broadcasting against `(B, H, Sq, Sk)`; tables have any shape.
        seed: of the dropout, one int64 element.
        spec: text of an `AttentionSpec`.
        origin: pattern and source lines, for the header of generated text.

    Returns:
        `(B, H, Sq, Dv)` in the spec's dtype; and, `(B, H, Sq)` in fp32, the largest score of each
        query and the sum of its exponentials beside it, which the backward starts from.
    """
    if v.device.type == "cpu":
        return interpreted_attention(q, k, v, captured, seed, spec, origin)
    return launch.forward(launch.problem(spec, q, k, v, captured, seed, origin))


@torch.library.triton_op("fuser::generated_attention_backward", mutates_args=())
def generated_attention_backward(
    grad: Tensor,
    out: Tensor,
    row_max: Tensor,
    row_sum: Tensor,
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `generated_attention` for q, k, v and captured, where `needs` says so."""
    if v.device.type == "cpu":
        return interpreted_attention_backward(
            grad, out, row_max, row_sum, q, k, v, captured, seed, spec, origin, needs
        )
    of = launch.problem(spec, q, k, v, captured, seed, origin)
    return launch.backward(of, grad, out, row_max, row_sum, needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, captured, seed, ctx.spec, ctx.origin = inputs
    ctx.counts = (len(q), len(captured))
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, *q, *k, v, *captured, *([seed] if seed is not None else []))


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    products, count = ctx.counts
    out, row_max, row_sum, *saved = ctx.saved_tensors
    operands, seed = saved[: 2 * products + 1 + count], saved[2 * products + 1 + count :]
    q, k = operands[:products], operands[products : 2 * products]
    v, captured = operands[2 * products], operands[2 * products + 1 :]
    needs = [x.is_floating_point() and x.requires_grad for x in operands]
    found = generated_attention_backward(
        grad, out, row_max, row_sum, q, k, v, captured, seed[0] if seed else None,
        ctx.spec, ctx.origin, needs,
    )  # fmt: skip
    grads = iter(found)
    full = [next(grads) if n else None for n in needs]
    return (
        full[:products], full[products : 2 * products], full[2 * products],
        full[2 * products + 1 :], None, None, None,
    )  # fmt: skip


generated_attention.register_autograd(_backward, setup_context=_save)
