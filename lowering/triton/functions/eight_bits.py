# Triton, which reads annotations itself, types parameters call by call.
# pyright: reportMissingParameterType=false
"""Floating-point numbers of eight bits, as bytes: not every GPU converts to them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def float8_e4m3fn(x):
    """The byte of an fp32 x rounded to even; what is beyond 448 becomes 448.

    As of PyTorch 2.13, and as Inductor and GPUs do; before, eager made NaN of it.
    """
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = bits & 0x7FFFFFFF
    normal = (size + 0x7FFFF + ((size >> 20) & 1) - (120 << 23)) >> 20
    # added to 2^14, an x below 2^-6 is rounded to its multiples of 2^-9
    small = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - (141 << 23)
    rounded = tl.minimum(tl.where(size < 121 << 23, small, normal), 0x7E)
    return (tl.where(size > 0x7F800000, 0x7F, rounded) | sign).to(tl.uint8)


@triton.jit
def float8_e5m2(x):
    """The byte of an fp32 x rounded to even; infinite from 61440 on."""
    bits = x.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    size = bits & 0x7FFFFFFF
    normal = (size + 0xFFFFF + ((size >> 21) & 1) - (112 << 23)) >> 21
    # added to 2^7, an x below 2^-14 is rounded to its multiples of 2^-16
    small = (tl.abs(x) + 128.0).to(tl.int32, bitcast=True) - (134 << 23)
    rounded = tl.where(size < 113 << 23, small, normal)
    beyond = tl.where(size > 0x7F800000, 0x7F, 0x7C)
    return (tl.where(size < 143 << 23, rounded, beyond) | sign).to(tl.uint8)
