"""Work: floating-point operations and bytes, as numbers or expressions of symbolic sizes.

Two operations are counted for each multiply-add of a matrix product or convolution, and nothing
beside them, as in `torch.utils.flop_counter`. What multiplies no matrices has one operation for
each operator of its program at each element. Bytes are the least: what is read from outside is read
once, and what is read outside, or again later, is written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch

from ..torch_private import to_expr

Amount: TypeAlias = Any
"""A number, or a sympy expression of symbolic sizes."""

ATTENTION_BACKWARD = 2.5
"""Products of an attention's backward over those of its forward: five, the scores again, over two
(FlashAttention-2, arXiv 2307.08691, section 4.1)."""
PRODUCT_BACKWARD = 2
"""The same where each product of a forward has two in the backward."""


@dataclass(frozen=True)
class Rates:
    """Bytes, and floating-point operations of one dtype, in a second."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Work:
    """What something cannot do without.

    Attributes:
        flops: floating-point operations.
        bytes: read and written.
        kernels: how many launches there are at the least.
    """

    flops: Amount
    bytes: Amount
    kernels: int = 1

    def __add__(self, other: Work) -> Work:
        kernels = self.kernels + other.kernels
        return Work(self.flops + other.flops, self.bytes + other.bytes, kernels)

    def at(self, sizes: dict[Any, Any]) -> Work:
        """The work where symbols have these values."""
        return Work(_number(self.flops, sizes), _number(self.bytes, sizes), self.kernels)

    def limit_ms(self, rates: Rates) -> float:
        """Milliseconds of the arithmetic, or of the traffic, whichever is more."""
        return 1e3 * max(float(self.flops) / rates.flops, float(self.bytes) / rates.bytes)


def _number(amount: Amount, sizes: dict[Any, Any]) -> Amount:
    found: Any = sympy.sympify(amount)
    found = found.xreplace(sizes)
    return int(found) if found.is_Integer else float(found)


def attention_flops(heads: Amount, pairs: Amount, features: Amount, values: Amount) -> Amount:
    """Operations of an attention's forward.

    Args:
        heads: batches times query heads.
        pairs: of a query and a key that it may see, of one head.
        features: of all keys that a query is multiplied with.
        values: features of a value.
    """
    return 2 * heads * pairs * (features + values)


def experts_chosen(experts: Amount, choices: Amount, tokens: Amount) -> Amount:
    """Experts that at least one token takes, on the average where all are as likely."""
    return experts * (1 - (1 - choices / experts) ** tokens)


def measured_rates(
    timed_ms: Callable[[Callable[[], object]], float],
    place: torch.device,
    *,
    dtype: torch.dtype = torch.bfloat16,
    side: int = 8192,
    copied: int | None = None,
    rounds: int = 9,
) -> Rates:
    """Rates of a copy and of a product of two square matrices, the best of some rounds.

    Args:
        timed_ms: milliseconds of a call.
        place: where.
        dtype: of the matrices.
        side: of the matrices.
        copied: elements that are copied; eight times those of a matrix where None.
        rounds: of each.
    """
    x = torch.randn(side, side, device=place).to(dtype)
    source = torch.empty(copied or 8 * side * side, dtype=dtype, device=place)
    target = torch.empty_like(source)

    def best(call: Callable[[], object]) -> float:
        call()
        return min(timed_ms(call) for _ in range(rounds)) / 1e3

    moved = 2 * source.numel() * source.itemsize
    return Rates(moved / best(lambda: target.copy_(source)), 2 * side**3 / best(lambda: x @ x))


def distinct(x: torch.Tensor) -> Amount:
    """Elements of a tensor in memory: a dimension that is expanded has one."""
    sizes = [to_expr(n) for n, s in zip(x.shape, x.stride(), strict=True) if not _is_zero(s)]
    return math.prod(sizes)


def _is_zero(stride: Any) -> bool:
    return isinstance(stride, int) and stride == 0


def size_bytes(x: torch.Tensor) -> Amount:
    """Bytes of those."""
    return distinct(x) * x.itemsize
