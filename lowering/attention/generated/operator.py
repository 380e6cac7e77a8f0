"""`fuser::generated_attention`: attention as a spec says, by kernels that are generated for it.

On a GPU the operator opens into kernel launches that Inductor sees; in Triton's interpreter it
stays closed, around an operator that runs the same kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .problem import problem, spec_of
from .run_backward import backward
from .run_forward import forward

_OPERANDS = (
    "Tensor[] q, Tensor[] k, Tensor v, Tensor[] captured, Tensor? seed, str spec, str origin, "
    "bool atomics"
)
_RESULTS = "Tensor, Tensor, Tensor"
_SAVED = "Tensor grad, Tensor out, Tensor row_max, Tensor row_sum"


@torch.library.custom_op(
    "fuser::interpreted_attention",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_OPERANDS}) -> ({_RESULTS})",
)
def interpreted_attention(*operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`generated_attention` in Triton's interpreter."""
    return forward(problem(*operands))


@interpreted_attention.register_fake
def _(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Any,
    seed: Any,
    spec: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = q[0].shape[:3]
    row_max, row_sum = (v.new_empty(rows, dtype=torch.float32) for _ in range(2))
    out = v.new_empty(*rows, v.shape[-1], dtype=spec_of(spec).dtype)
    return out, row_max, row_sum


@torch.library.custom_op(
    "fuser::interpreted_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_SAVED}, {_OPERANDS}, bool[] needs) -> Tensor[]",
)
def interpreted_attention_backward(*arguments: Any) -> list[Tensor]:
    """`generated_attention_backward` in Triton's interpreter."""
    grad, out, row_max, row_sum, *operands, needs = arguments
    return backward(problem(*operands), grad, out, row_max, row_sum, needs)


@interpreted_attention_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    q, k, v, captured = arguments[4:8]
    inputs = [*q, *k, v, *captured]
    return [x.new_empty(x.shape) for x, n in zip(inputs, arguments[-1], strict=True) if n]


@torch.library.triton_op("fuser::generated_attention", mutates_args=())
def generated_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Tensor,
    captured: Sequence[Tensor],
    seed: Tensor | None,
    spec: str,
    origin: str,
    atomics: bool,
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
        atomics: gradients of queries may be added up in any order, which is another in each run.

    Returns:
        `(B, H, Sq, Dv)` in the spec's dtype; and, `(B, H, Sq)` in fp32, the largest score of each
        query and the sum of its exponentials beside it, which the backward starts from.
    """
    if v.device.type == "cpu":
        return interpreted_attention(q, k, v, captured, seed, spec, origin, atomics)
    return forward(problem(q, k, v, captured, seed, spec, origin, atomics))


# triton_op reads the signature, whatever schema it is given
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
    atomics: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `generated_attention` for q, k, v and captured, where `needs` says so."""
    saved = (grad, out, row_max, row_sum)
    operands = (q, k, v, captured, seed, spec, origin, atomics)
    if v.device.type == "cpu":
        return interpreted_attention_backward(*saved, *operands, needs)
    return backward(problem(*operands), *saved, needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, captured, seed, *ctx.rest = inputs
    ctx.counts = (len(q), len(captured))
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, *q, *k, v, *captured, *([seed] if seed is not None else []))


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    products, count = ctx.counts
    out, row_max, row_sum, *saved = ctx.saved_tensors
    operands, seed = saved[: 2 * products + 1 + count], saved[2 * products + 1 + count :]
    q, k = operands[:products], operands[products : 2 * products]
    v, captured = operands[2 * products], operands[2 * products + 1 :]
    spec, origin, atomics = ctx.rest
    needs = [x.is_floating_point() and x.requires_grad for x in operands]
    found = generated_attention_backward(
        grad, out, row_max, row_sum, q, k, v, captured, seed[0] if seed else None,
        spec, origin, atomics, needs,
    )  # fmt: skip
    grads = iter(found)
    full = [next(grads) if n else None for n in needs]
    return (
        full[:products], full[products : 2 * products], full[2 * products],
        full[2 * products + 1 :], None, None, None, None,
    )  # fmt: skip


torch.library.register_autograd("fuser::generated_attention", _backward, setup_context=_save)
