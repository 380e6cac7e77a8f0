"""What mixtures are expected to take on a GPU, in units of PyTorch's grouped product.

Measured on an H200 in bf16 (`benchmarks/results/moe-generated-cuda.csv`), generated kernels over the grouped
product: 1.3 to 1.5 times as fast while an expert has up to 8 rows, 1.03 at 512 rows, 0.94 at 2048
and 0.86 at 1024 rows of 4096 features; with gradients 0.69 to 0.92.
"""

from __future__ import annotations

from fuser.pattern import Call

from ..base import size

LIBRARY = 1.0
FASTER, SLOWER = 0.8, 1.2
"""Generated kernels, for few rows of an expert and for many."""
FEW = 512
"""Rows of an expert up to which generated kernels are faster in inference."""
UNKNOWN = 1024.0
"""Rows of an expert where their number is not known while compiling."""


def rows_of_expert(call: Call) -> float:
    """How many rows an expert has on average."""
    tokens, choices = (size(call, "indices", dim) for dim in range(2))
    if tokens is None or choices is None:
        return UNKNOWN
    return tokens * choices / call.spec.experts


def generated(call: Call, *, training: bool) -> float:
    """Work of generated kernels."""
    return FASTER if not training and rows_of_expert(call) <= FEW else SLOWER
