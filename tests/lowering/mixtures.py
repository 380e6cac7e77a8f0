"""Mixtures with random operands, and what operators make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuser.specs import Columns, MoeSpec
from tests.compiled import Run
from tests.lowering.generated import DEVICE, program


def swiglu(h0: Tensor, h1: Tensor) -> Tensor:
    return F.silu(h0) * h1


def clamped(h0: Tensor, h1: Tensor) -> Tensor:
    gate = h0.clamp(max=1.5)
    return (h1.clamp(-1.5, 1.5) + 1) * gate * torch.sigmoid(gate * 1.702)


def squared(h0: Tensor) -> Tensor:
    return torch.relu(h0).square()


@dataclass(frozen=True)
class Operands:
    """What an operator of mixtures is given, as `MoeSpec` describes it."""

    x: Tensor
    indices: Tensor
    weights: Tensor
    matrices: Sequence[Tensor]
    biases: Sequence[Tensor]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.weights, *self.matrices, *self.biases]

    def wide(self) -> Operands:
        """In fp64."""
        made = [t.detach().double().requires_grad_() for t in self.leaves]
        return self.with_leaves(made)

    def with_leaves(self, made: Sequence[Tensor]) -> Operands:
        count = len(self.matrices)
        return Operands(made[0], self.indices, made[1], made[2 : 2 + count], made[2 + count :])


def mixture(
    activation: Callable[..., Tensor] = swiglu,
    *,
    tokens: int = 21,
    choices: int = 2,
    experts: int = 5,
    features: int = 40,
    hidden: int = 24,
    width: int = 36,
    dtype: torch.dtype = torch.float32,
    separate: bool = False,
    first: bool = False,
    biases: bool = False,
    in_pairs: bool = False,
    products: int = 1,
    transposed: bool = False,
) -> tuple[MoeSpec, Operands]:
    """A spec, and operands that require gradients.

    Args:
        activation: of one input, or of two.
        tokens, choices, experts, features, hidden, width: sizes.
        dtype: of everything.
        separate: experts have tensors of their own.
        first: tokens are weighted before they go through their experts.
        biases: every product adds one.
        in_pairs: the activation's two inputs take turns in the columns of the first product.
        products: first products, one for each input if there are two.
        transposed: matrices are `(in, out)` in memory.
    """
    of = program(activation)
    count = len(of.inputs)
    if products == 2:
        columns = (Columns(0), Columns(1))
    elif in_pairs:
        columns = tuple(Columns(0, i, None, count) for i in range(count))
    else:
        columns = tuple(Columns(0, i * hidden, (i + 1) * hidden) for i in range(count))
    generator = torch.Generator().manual_seed(tokens)

    def made(*shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=generator) * scale
        return x.to(DEVICE, dtype)

    rows = hidden if products == 2 else hidden * count
    matrices = [made(experts, rows, features, scale=features**-0.5) for _ in range(products)]
    matrices.append(made(experts, width, hidden, scale=hidden**-0.5))
    added = [made(experts, m.shape[1]) for m in matrices] if biases else []
    if transposed:
        matrices = [m.mT.contiguous().mT for m in matrices]
    if separate:
        matrices = [m for stacked in matrices for m in stacked.unbind()]
        added = [b for stacked in added for b in stacked.unbind()]
    scores = torch.rand(tokens, experts, generator=generator)
    indices = scores.topk(choices, dim=-1).indices.to(DEVICE)
    leaves = [made(tokens, features), made(tokens, choices).abs(), *matrices, *added]
    leaves = [t.detach().requires_grad_() for t in leaves]
    spec = MoeSpec(experts, columns, of, (biases,) * (products + 1), separate, first, dtype, dtype)
    n = len(matrices)
    return spec, Operands(leaves[0], indices, leaves[1], leaves[2 : 2 + n], leaves[2 + n :])


def in_runs(counts: Sequence[int], extra: int = 0, **kind: Any) -> tuple[MoeSpec, Operands]:
    """The same of rows that come in runs of so many rows, and extra ones behind them."""
    tokens = sum(counts) + extra
    spec, x = mixture(tokens=tokens, choices=1, experts=len(counts), **kind)
    ends = torch.tensor(counts, device=DEVICE).cumsum(0).int()
    return replace(spec, runs=True, dropping=True), replace(x, indices=ends)


def in_fp64(spec: MoeSpec) -> MoeSpec:
    return replace(spec, dtype=torch.float64, product_dtype=torch.float64)


def outcome(operator: Any, spec: MoeSpec, x: Operands, *more: Any) -> Run:
    """The result of an operator, and the gradients of everything that requires one."""
    out = operator(x.x, x.indices, x.weights, x.matrices, x.biases, spec.to_text(), *more)
    out = out[0] if isinstance(out, (tuple, list)) else out
    cotangent = torch.linspace(0.5, 1.5, out.numel(), device=out.device).reshape(out.shape)
    leaves = [t for t in x.leaves if t.requires_grad]
    return Run([out.detach()], list(torch.autograd.grad(out, leaves, cotangent.to(out))))
