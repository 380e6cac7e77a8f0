"""The oracle: expert by expert in plain PyTorch, as the operator `fuser::moe`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fuser.builder import Builder
from fuser.pattern import Call
from fuser.specs import MoeSpec
from fuser.torch_private import differentiable

from ..base import Context, Emission, Lowering, Refusal, register_lowering
from .experts import Experts, accumulating, apply, numbered, owners
from .operators import define, emit

WORK = 10.0


def mix(experts: Experts, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The mixture as its spec says, each expert on the tokens that chose it.

    Args:
        experts: their weights.
        x: `(T, D)`.
        indices: `(T, K)`, of experts; or the ends of runs.
        weights: `(T, K)`.

    Returns:
        `(T, Dout)`.
    """
    spec = experts.spec
    if spec.runs:
        indices = owners(indices, x.shape[0])
    indices = numbered(indices, spec.experts, spec.dropping)
    out = x.new_zeros(x.shape[0], experts.width, dtype=accumulating(spec.dtype))
    for expert in range(spec.experts):
        token, choice = torch.where(indices == expert)
        if not token.numel():
            continue
        weight = weights[token, choice, None]
        rows = x[token] * weight if spec.weights_first else x[token]
        y = apply(spec, rows, *experts.of(expert))
        out = out.index_add(0, token, (y if spec.weights_first else y * weight).to(out.dtype))
    return out.to(spec.dtype)


def gradients(
    grad: Tensor,
    experts: Experts,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Of `mix`, which is recomputed with gradients recorded: of x, weights and the experts' tensors
    where `needs` says so."""
    inputs = [x, weights, *experts.tensors]
    leaves = [t.detach().requires_grad_(n) for t, n in zip(inputs, needs, strict=True)]
    own_x, own_weights, *rest = leaves
    count = len(experts.matrices)
    with differentiable():
        out = mix(Experts(experts.spec, rest[:count], rest[count:]), own_x, indices, own_weights)
    wanted = [t for t, n in zip(leaves, needs, strict=True) if n]
    if not out.requires_grad:  # there are no tokens
        return [torch.zeros_like(t) for t in wanted]
    return [g.contiguous() for g in torch.autograd.grad(out, wanted, grad, materialize_grads=True)]


define("moe", mix, gradients)


@register_lowering(MoeSpec, order=100)
class Reference(Lowering):
    """`fuser::moe` with its plain PyTorch kernel: always possible, never fast."""

    name: ClassVar[str] = "reference"
    kind: ClassVar[str] = "reference"

    def prepare(self, call: Call, context: Context) -> Emission | Refusal:
        def put(builder: Builder) -> Node:
            return emit(builder, call, torch.ops.fuser.moe.default)

        slower = "it searches the tokens of every expert"
        return Emission(put, "reference", "takes every mixture", slower, {}, WORK)
