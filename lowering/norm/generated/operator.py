"""`fuser::generated_norm`: a norm as a spec says, by kernels that are generated for it.

On a GPU the operator opens into kernel launches that Inductor sees; in Triton's interpreter it
stays closed, around an operator that runs the same kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import save, saved, spec_of
from .problem import Statistics, gradient_like, problem
from .run import backward, forward

_STATISTICS = 3
"""How many tensors of statistics follow the results."""


@torch.library.custom_op("fuser::interpreted_norm", mutates_args=(), device_types="cpu")
def interpreted_norm(
    captured: Sequence[Tensor], spec: str, origin: str, keep: bool
) -> list[Tensor]:
    """`generated_norm` in Triton's interpreter."""
    return forward(problem(captured, spec, origin), keep)


@interpreted_norm.register_fake
def _(captured: Sequence[Tensor], spec: str, origin: str, keep: bool) -> list[Tensor]:
    of = problem(captured, spec, origin)
    return [*of.typed(of.results()), *of.statistics(keep=keep).tensors]


@torch.library.custom_op("fuser::interpreted_norm_backward", mutates_args=(), device_types="cpu")
def interpreted_norm_backward(
    grads: Sequence[Tensor],
    results: Sequence[int],
    captured: Sequence[Tensor],
    statistics: Sequence[Tensor],
    spec: str,
    origin: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """`generated_norm_backward` in Triton's interpreter."""
    of, given = problem(captured, spec, origin), dict(zip(results, grads, strict=True))
    found = backward(of, given, Statistics(*statistics), needs)
    like = [gradient_like(captured[i], grads) for i in _wanted(needs)]
    return [
        g if g.stride() == own.stride() else own.copy_(g)
        for g, own in zip(found, like, strict=True)
    ]


def _wanted(needs: Sequence[bool]) -> list[int]:
    return [i for i, n in enumerate(needs) if n]


@interpreted_norm_backward.register_fake
def _(
    grads: Sequence[Tensor], results: Sequence[int], captured: Sequence[Tensor],
    statistics: Sequence[Tensor], spec: str, origin: str, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    return [gradient_like(captured[i], grads) for i in _wanted(needs)]


@torch.library.triton_op("fuser::generated_norm", mutates_args=())
def generated_norm(captured: Sequence[Tensor], spec: str, origin: str, keep: bool) -> list[Tensor]:
    """A norm as a spec says.

    Args:
        captured: of the same rank, broadcasting against each other.
        spec: text of a `NormSpec`.
        origin: pattern and source lines, for the header of generated text.
        keep: a backward will follow: the statistics are saved for it.

    Returns:
        The results, in the order in memory of the first operand that is not broadcast; then the
        means in two numbers and the scales of rows, or none.
    """
    if captured[0].device.type == "cpu":
        return interpreted_norm(captured, spec, origin, keep)
    return forward(problem(captured, spec, origin), keep)


@torch.library.triton_op("fuser::generated_norm_backward", mutates_args=())
def generated_norm_backward(
    grads: Sequence[Tensor],
    results: Sequence[int],
    captured: Sequence[Tensor],
    statistics: Sequence[Tensor],
    spec: str,
    origin: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of `generated_norm` for the operands where `needs` says so.

    Args:
        grads: of those results that `results` numbers, one of y_0, y_1, ... at the least.
        captured: as for `generated_norm`, with zeros without memory in place of those that the
            gradients do not read.
    """
    if captured[0].device.type == "cpu":
        return interpreted_norm_backward(grads, results, captured, statistics, spec, origin, needs)
    of, given = problem(captured, spec, origin), dict(zip(results, grads, strict=True))
    return backward(of, given, Statistics(*statistics), needs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    captured, spec, ctx.origin, _ = inputs
    statistics = output[-_STATISTICS:]
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)
    ctx.shape = output[0].shape
    save(ctx, captured, spec, *statistics)


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    statistics = ctx.saved_tensors[:_STATISTICS]
    captured, needs = saved(ctx, ctx.saved_tensors[_STATISTICS:], grads), ctx.needs
    spec = spec_of(ctx.spec)
    given = {i: g for i, g in enumerate(grads[:-_STATISTICS]) if g is not None}
    if not any(i < len(spec.dtypes) for i in given):
        given = {0: captured[0].new_zeros(ctx.shape, dtype=spec.dtypes[0]), **given}
    found = iter(
        generated_norm_backward(
            [*given.values()], [*given], captured, statistics, ctx.spec, ctx.origin, needs
        )
    )
    return [next(found) if n else None for n in needs], None, None, None


torch.library.register_autograd("fuser::generated_norm", _backward, setup_context=_save)
