"""`fuser::generated_moe`: a mixture as a spec says, by kernels that are generated for it.

On a GPU the operator opens into kernel launches that Inductor sees; in Triton's interpreter it
stays closed, around an operator that runs the same kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..experts import Experts, spec_of
from .problem import Places, Problem, problem
from .run import backward, forward

_OPERANDS = (
    "Tensor x, Tensor indices, Tensor weights, Tensor[] matrices, Tensor[] biases, str spec, "
    "str origin, bool keep"
)
_SAVED = "Tensor grad, Tensor saved, Tensor order, Tensor starts"


def _problem(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
    origin: str,
) -> Problem:
    return problem(x, indices, weights, Experts(spec_of(spec), matrices, biases), origin)


@torch.library.custom_op(
    "fuser::interpreted_moe",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_OPERANDS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def interpreted_moe(*operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`generated_moe` in Triton's interpreter."""
    *rest, keep = operands
    return forward(_problem(*rest), keep)


@interpreted_moe.register_fake
def _(x: Tensor, indices: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *operands, keep = rest
    of = _problem(x, indices, *operands)
    layout, rows = of.layout, of.rows
    out = x.new_empty(x.shape[0], layout.width, dtype=layout.spec.dtype)
    columns = len(layout.columns)
    saved = x.new_empty(rows if keep else 0, columns, layout.hidden, dtype=layout.dtype)
    order = indices.new_empty(0 if layout.spec.runs else rows, dtype=torch.int32)
    return out, saved, order, indices.new_empty(layout.spec.experts + 1, dtype=torch.int32)


@torch.library.custom_op(
    "fuser::interpreted_moe_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_SAVED}, {_OPERANDS}, bool[] needs) -> Tensor[]",
)
def interpreted_moe_backward(*arguments: Any) -> list[Tensor]:
    """`generated_moe_backward` in Triton's interpreter."""
    grad, saved, order, starts, *operands, _, needs = arguments
    return backward(_problem(*operands), grad, saved, Places(order, starts), needs)


@interpreted_moe_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    x, _, weights, matrices, biases = arguments[4:9]
    inputs = [x, weights, *matrices, *biases]
    return [torch.empty_like(t) for t, n in zip(inputs, arguments[-1], strict=True) if n]


@torch.library.triton_op("fuser::generated_moe", mutates_args=())
def generated_moe(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
    origin: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A mixture as a spec says.

    Args:
        x: `(T, D)`.
        indices: `(T, K)`, integers; negative ones count from the end. One of no expert gives NaN.
            Or the ends of runs.
        weights: `(T, K)`.
        matrices: as `MoeSpec.matrices` names them.
        biases: as `MoeSpec.added` does.
        spec: text of a `MoeSpec`.
        origin: pattern and source lines, for the header of generated text.
        keep: a backward will follow: the first products are saved for it.

    Returns:
        `(T, Dout)` in the spec's dtype; the first products of each choice, `(T * K, columns,
        hidden)`, nothing where they are not kept; the choices in the order of their experts, and
        where each expert's begin.
    """
    operands = (x, indices, weights, matrices, biases, spec, origin)
    if x.device.type == "cpu":
        return interpreted_moe(*operands, keep)
    return forward(_problem(*operands), keep)


# triton_op reads the signature, whatever schema it is given
@torch.library.triton_op("fuser::generated_moe_backward", mutates_args=())
def generated_moe_backward(
    grad: Tensor,
    saved: Tensor,
    order: Tensor,
    starts: Tensor,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    matrices: Sequence[Tensor],
    biases: Sequence[Tensor],
    spec: str,
    origin: str,
    keep: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `generated_moe` for x, weights, matrices and biases, where `needs` says so."""
    operands = (x, indices, weights, matrices, biases, spec, origin)
    if x.device.type == "cpu":
        return interpreted_moe_backward(grad, saved, order, starts, *operands, keep, needs)
    return backward(_problem(*operands), grad, saved, Places(order, starts), needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, indices, weights, matrices, biases, *ctx.rest = inputs
    ctx.count = len(matrices)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], x, indices, weights, *matrices, *biases)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    saved, order, starts, x, indices, weights, *rest = ctx.saved_tensors
    needs = [t.is_floating_point() and t.requires_grad for t in (x, weights, *rest)]
    matrices, biases = rest[: ctx.count], rest[ctx.count :]
    spec, origin, keep = ctx.rest
    gradients = generated_moe_backward(
        grad, saved, order, starts, x, indices, weights, matrices, biases, spec, origin, keep, needs
    )
    found = iter(gradients)
    own_x, own_weights, *others = [next(found) if n else None for n in needs]
    return own_x, None, own_weights, others[: ctx.count], others[ctx.count :], None, None, None


torch.library.register_autograd("fuser::generated_moe", _backward, setup_context=_save)
