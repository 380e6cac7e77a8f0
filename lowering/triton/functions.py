"""What `triton.language` lacks, in operations that the interpreter and every GPU have.

Generated code imports these by name. All take tiles or scalars of Triton in fp32 or fp64 unless
they say otherwise, and are within a few units in the last place of PyTorch's.
"""

# pyright: reportMissingParameterType=false
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def bfloat16(x):
    """An fp32 x rounded to bfloat16, in fp32; the interpreter's own cast truncates."""
    if _INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        even = (bits >> 16) & 1
        rounded = ((bits + 0x7FFF + even) & -65536).to(tl.float32, bitcast=True)
        return tl.where(tl.abs(x) < float("inf"), rounded, x)
    else:
        return x.to(tl.bfloat16).to(tl.float32)


@triton.jit
def float16(x):
    """An fp32 x rounded to float16, in fp32."""
    return x.to(tl.float16).to(tl.float32)


@triton.jit
def maximum(x, y):
    """The greater one, NaN where either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The lesser one, NaN where either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def expm1(x):
    """exp(x) - 1, exact near 0."""
    if x.dtype == tl.float64:
        u = tl.exp(x)
        kahan = (u - 1.0) * (x / tl.log(u))
        return tl.where(u == 1.0, x, tl.where(tl.abs(x) < 1.0, kahan, u - 1.0))
    else:
        p = x * (1.0 / 40320) + (1.0 / 5040)
        p = p * x + (1.0 / 720)
        p = p * x + (1.0 / 120)
        p = p * x + (1.0 / 24)
        p = p * x + (1.0 / 6)
        p = p * x + 0.5
        return tl.where(tl.abs(x) < 0.5, x + x * x * p, tl.exp(x) - 1.0)


@triton.jit
def tanh(x):
    """The hyperbolic tangent: a polynomial (Cephes) below 0.625."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        u = expm1(2.0 * a)
        r = tl.where(a < 20.0, u / (u + 2.0), 1.0)
        return tl.where(x < 0.0, -r, tl.where(x == 0.0, x, r))
    else:
        z = x * x
        p = z * -5.70498872745e-3 + 2.06390887954e-2
        p = p * z + -5.37397155531e-2
        p = p * z + 1.33314422036e-1
        p = p * z + -3.33332819422e-1
        far = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
        return tl.where(a < 0.625, x + x * z * p, tl.where(x < 0.0, -far, far))
