"""`fuser::generated_router`: one kernel forward, one backward.

On a GPU the operator opens into kernel launches that Inductor sees; in Triton's interpreter it
stays closed, around an operator that runs the same kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...triton.launch import run
from .catalogue import record
from .layout import Layout, layout_of
from .reference import empty_results
from .rows import spec_of
from .text import build, rows_of_program


def _layout(logits: Tensor, captured: Sequence[Tensor], spec: str) -> Layout:
    experts = int(logits.shape[1])  # a guard, where it is a symbol
    return layout_of(spec_of(spec), experts, logits.dtype, tuple(b.dtype for b in captured))


def _launch(layout: Layout, stage: str, origin: str, given: Mapping[str, Tensor]) -> None:
    record(layout, stage)
    kernel = build(layout, stage, origin)
    tokens = given["logits"].shape[0]
    values: dict[str, Any] = {"T": tokens, **given}
    for name, tensor in given.items():
        letters = "te" if name == "logits" else "tk" if name == "grad" else "e"
        values |= {f"{name}_{s}": n for s, n in zip(letters, tensor.stride(), strict=False)}
    run(kernel, (-(-tokens // rows_of_program(layout)),), values)


def _forward(
    logits: Tensor, captured: Sequence[Tensor], spec: str, origin: str
) -> tuple[Tensor, Tensor]:
    layout = _layout(logits, captured, spec)
    weights, indices = empty_results(logits, layout.spec)
    wide = {f"b{i}": b.expand(layout.experts) for i, b in enumerate(captured)}
    given = {"logits": logits, **wide, "weights": weights, "indices": indices}
    _launch(layout, "forward", origin, given)
    return weights, indices


def _gradient(
    grad: Tensor,
    logits: Tensor,
    indices: Tensor,
    captured: Sequence[Tensor],
    spec: str,
    origin: str,
) -> Tensor:
    dlogits = logits.new_empty(logits.shape)
    given = {"grad": grad, "logits": logits, "indices": indices, "dlogits": dlogits}
    _launch(_layout(logits, captured, spec), "backward", origin, given)
    return dlogits


@torch.library.custom_op("fuser::interpreted_router", mutates_args=(), device_types="cpu")
def interpreted_router(
    logits: Tensor, captured: Sequence[Tensor], spec: str, origin: str
) -> tuple[Tensor, Tensor]:
    """`generated_router` in Triton's interpreter."""
    return _forward(logits, captured, spec, origin)


@interpreted_router.register_fake
def _(logits: Tensor, captured: Sequence[Tensor], spec: str, origin: str) -> tuple[Tensor, Tensor]:
    return empty_results(logits, spec_of(spec))


@torch.library.custom_op("fuser::interpreted_router_backward", mutates_args=(), device_types="cpu")
def interpreted_router_backward(
    grad: Tensor,
    logits: Tensor,
    indices: Tensor,
    captured: Sequence[Tensor],
    spec: str,
    origin: str,
) -> Tensor:
    """`generated_router_backward` in Triton's interpreter."""
    return _gradient(grad, logits, indices, captured, spec, origin)


@interpreted_router_backward.register_fake
def _(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(logits.shape)


@torch.library.triton_op("fuser::generated_router", mutates_args=())
def generated_router(
    logits: Tensor, captured: Sequence[Tensor], spec: str, origin: str
) -> tuple[Tensor, Tensor]:
    """The best experts of each token; of equal scores the lowest index comes first.

    Args:
        logits: `(T, E)`.
        captured: `(E,)` each, or `(1,)`; no gradient gets to them.
        spec: text of a `RouterSpec`.
        origin: pattern and source lines, for the header of generated text.

    Returns:
        weights `(T, K)` in the spec's dtype, and indices `(T, K)`, int64.
    """
    if logits.device.type == "cpu":
        return interpreted_router(logits, captured, spec, origin)
    return _forward(logits, captured, spec, origin)


@torch.library.triton_op("fuser::generated_router_backward", mutates_args=())
def generated_router_backward(
    grad: Tensor,
    logits: Tensor,
    indices: Tensor,
    captured: Sequence[Tensor],
    spec: str,
    origin: str,
) -> Tensor:
    """The gradient of the logits, from that of the weights."""
    operands = (grad, logits, indices, captured, spec, origin)
    if logits.device.type == "cpu":
        return interpreted_router_backward(*operands)
    return _gradient(*operands)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, captured, *ctx.rest = inputs
    ctx.count = len(captured)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, output[1], *captured)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    logits, indices, *captured = ctx.saved_tensors
    found = generated_router_backward(grad, logits, indices, captured, *ctx.rest)
    return found, [None] * ctx.count, None, None


torch.library.register_autograd("fuser::generated_router", _backward, setup_context=_save)
