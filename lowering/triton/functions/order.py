# pyright: reportMissingParameterType=false
"""Numbers in the order in which `topk` has them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordinal(x):
    """int32 in the order of fp32 numbers x: NaN is the largest, and the zeros are equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


@triton.jit
def of_ordinal(n):
    """The fp32 number with this ordinal."""
    return (n ^ ((n >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def ranked(x, place, there):
    """int64 in the order of fp32 numbers x, of equals the first place first; what is not there
    comes after all."""
    rank = (ordinal(x).to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)
    return tl.where(there, rank, -0x7FFFFFFFFFFFFFFF)


@triton.jit
def number_of(rank):
    """The number that was ranked."""
    return of_ordinal((rank >> 32).to(tl.int32))


@triton.jit
def place_of(rank):
    """Its place."""
    return 0x7FFFFFFF - (rank & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def without(rank, best):
    """Ranks without one of them."""
    return tl.where(rank == best, -0x7FFFFFFFFFFFFFFF, rank)
