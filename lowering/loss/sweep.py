"""The rows of a cross-entropy in chunks: no more logits exist at a time than those of one.

    z    = x Wᵀ of a chunk                      one product
    l    = log_softmax(after(z))                block by block
    z    = dafter(s softmax - t (1 - ε) onehot - t ε / V)
    dx   = z W         dW += zᵀ x

The gradients need what a row's loss and a row's softmax count, `t` and `s`. A loss of all rows
knows both as soon as it knows the row; so no logits are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fuser.torch_private import differentiable

from .problem import Problem, accumulating, is_cast

CHUNK = 64 << 20
"""Bytes of a chunk's logits, or a share of all of them where that is more: products of too few
rows are slow, and each reads and writes the whole gradient of the matrix."""
SHARE = 16
BLOCK = 1 << 20
"""Logits for which each thread of a CPU computes losses at a time. Of 131072 classes a row takes
0.39 ms with its gradient in blocks of 4 rows, 0.47 in blocks of 16 and 0.70 of 64, by one thread;
but after every operator threads wait for each other, longest where others use the cores too."""
SLICE = 1 << 13
"""Classes whose gradient is added up in fp32 at a time, where products are in half precision."""

Coefficients: TypeAlias = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Of rows and their logsumexp, if its square is wanted: what their softmax counts, and what their
target does."""


class Wanted(NamedTuple):
    """Of which operands gradients are computed."""

    x: bool
    weight: bool
    bias: bool
    captured: bool


@dataclass
class Swept:
    """What a sweep gives: of rows `nll`, `(N,)`, and `lse`, `(N,)` where its square is wanted, else
    `(0,)`; and gradients where they were wanted, in the dtype of their operand, those of captured
    numbers as one tensor."""

    nll: Tensor
    lse: Tensor
    x: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    captured: Tensor | None = None


def chunk_rows(of: Problem) -> int:
    """How many rows have their logits computed at a time."""
    row = max(1, of.classes * of.x.dtype.itemsize)
    return max(1, max(CHUNK, of.rows * row // SHARE) // row)


def block_rows(of: Problem) -> int:
    """How many of these have their losses computed at a time."""
    if of.x.device.type != "cpu":
        return max(1, of.rows)
    threads = torch.get_num_threads()
    return threads * max(1, BLOCK // max(1, of.classes))


def sweep(of: Problem, coefficients: Coefficients, wanted: Wanted) -> Swept:
    """Losses of rows, and gradients.

    Args:
        of: the operands.
        coefficients: asked once for the rows of each block, where a gradient is wanted.
        wanted: which gradients.
    """
    return _Sweep(of, coefficients, wanted).run()


class _Sweep:
    def __init__(self, of: Problem, coefficients: Coefficients, wanted: Wanted) -> None:
        self.of, self.coefficients, self.wanted = of, coefficients, wanted
        self.kept = of.kept
        self.target = torch.where(self.kept, of.target, 0).long().unsqueeze(-1)
        new, wide = of.x.new_empty, of.dtype
        squared = of.rows if of.spec.square else 0
        self.result = Swept(new(of.rows, dtype=wide), new(squared, dtype=wide))
        if wanted.x:
            self.result.x = torch.empty_like(of.x, memory_format=torch.contiguous_format)
        self.weight: Tensor | None = None
        self.bias = of.x.new_zeros(of.classes if wanted.bias else 0, dtype=wide)
        self.captured = of.x.new_zeros(len(of.captured) if wanted.captured else 0, dtype=wide)
        self.at_once, self.in_cache = chunk_rows(of), block_rows(of)

    def run(self) -> Swept:
        of, result = self.of, self.result
        logits = of.x.new_empty(min(self.at_once, of.rows), of.classes)
        for start in range(0, of.rows, self.at_once):
            rows = slice(start, min(start + self.at_once, of.rows))
            self._chunk(rows, logits[: rows.stop - rows.start])
        del logits
        if self.wanted.weight:
            made = self.weight if self.weight is not None else torch.zeros_like(of.weight)
            result.weight = made.to(of.weight.dtype)
            self.weight = None
        if self.wanted.bias:
            result.bias = self.bias.to(of.x.dtype)
        if self.wanted.captured:
            result.captured = self.captured
        return result

    def _chunk(self, rows: slice, z: Tensor) -> None:
        of, x = self.of, self.of.x[rows]
        if of.bias is None:
            torch.mm(x, of.weight.t(), out=z)
        else:
            torch.addmm(of.bias, x, of.weight.t(), out=z)
        for start in range(rows.start, rows.stop, self.in_cache):
            block = slice(start, min(start + self.in_cache, rows.stop))
            self._block(block, z[block.start - rows.start : block.stop - rows.start])
        if self.result.x is not None:
            torch.mm(z, of.weight, out=self.result.x[rows])
        if self.wanted.weight:
            self._add_to_weight(z, x)
        if self.wanted.bias:
            self.bias += z.sum(0, dtype=self.bias.dtype)

    def _block(self, rows: slice, z: Tensor) -> None:
        """Losses of some rows; afterwards `z` holds the gradient of the product."""
        of, gradients = self.of, any(self.wanted)
        if is_cast(of.spec.after):
            leaves, logits = [z], z
        else:
            leaves = [z.detach(), *(c.detach() for c in of.captured)]
            with differentiable() if gradients else torch.no_grad():
                for leaf, needs in zip(leaves, self._needs(), strict=True):
                    leaf.requires_grad_(needs and gradients)
                logits = of.after(leaves[0], leaves[1:])
        logs = torch.log_softmax(logits.detach(), -1, dtype=of.dtype)
        target, smoothing = self.target[rows], of.spec.smoothing
        picked = logs.gather(-1, target).squeeze(-1)
        lse = picked  # not wanted
        if of.spec.square:
            lse = self.result.lse[rows] = logits.detach().amax(-1).to(of.dtype) - logs.amax(-1)
        nll = picked.neg()
        if smoothing:
            nll = (1 - smoothing) * nll - smoothing * logs.mean(-1)
        self.result.nll[rows] = torch.where(self.kept[rows], nll, 0.0)
        if not gradients:
            return
        softmax, own = self.coefficients(rows, lse)
        plain = logits is z
        into = z if plain and z.dtype is logs.dtype else logs
        grad = torch.mul(logs.exp_(), softmax.unsqueeze(-1), out=into)
        if smoothing:
            grad.sub_((own * (smoothing / of.classes)).unsqueeze(-1))
        grad.scatter_add_(-1, target, (own * (smoothing - 1)).unsqueeze(-1))
        if not plain:
            self._through(leaves, logits, grad, z)
        elif grad is not z:
            z.copy_(grad)

    def _needs(self) -> list[bool]:
        wanted = self.wanted.captured
        return [True, *(wanted and c.is_floating_point() for c in self.of.captured)]

    def _through(self, leaves: Sequence[Tensor], logits: Tensor, grad: Tensor, z: Tensor) -> None:
        """The gradient of the product, from that of the logits."""
        with differentiable():
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(
                logits, wanted, grad.to(logits.dtype), allow_unused=True, materialize_grads=True
            )
        z.copy_(found[0])
        if self.wanted.captured:
            numbers = iter(found[1:])
            for i, leaf in enumerate(leaves[1:]):
                if leaf.requires_grad:
                    self.captured[i] += next(numbers).sum()

    def _add_to_weight(self, z: Tensor, x: Tensor) -> None:
        wide = accumulating(z.dtype)
        if self.weight is None:
            if self.at_once >= self.of.rows:
                self.weight = torch.mm(z.t(), x)
                return
            self.weight = z.new_zeros(self.of.weight.shape, dtype=wide)
        if z.dtype is wide:
            self.weight.addmm_(z.t(), x)
            return
        for start in range(0, self.of.classes, SLICE):
            self.weight[start : start + SLICE] += z[:, start : start + SLICE].t() @ x
