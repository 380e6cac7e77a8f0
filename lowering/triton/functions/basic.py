# Triton, which reads annotations itself, types parameters call by call.
# pyright: reportMissingParameterType=false
"""Rounding, signs, choices and divisions."""

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
        rounded = ((bits + 0x7FFF + even) & -0x10000).to(tl.float32, bitcast=True)
        return tl.where(tl.abs(x) < float("inf"), rounded, x)
    else:
        return x.to(tl.bfloat16).to(tl.float32)


@triton.jit
def float16(x):
    """An fp32 x rounded to float16, in fp32."""
    return x.to(tl.float16).to(tl.float32)


@triton.jit
def maximum(x, y):
    """The greater one, NaN where either is; numbers of any kind, bare ones too."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The lesser one, NaN where either is; numbers of any kind, bare ones too."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def both(x, y):
    """x & y of masks; the interpreter mistakes the type of a scalar comparison that it spreads."""
    if _INTERPRETED:
        return (x.to(tl.int32) & y.to(tl.int32)) != 0
    else:
        return x & y


@triton.jit
def either(x, y):
    """x | y of masks."""
    if _INTERPRETED:
        return (x.to(tl.int32) | y.to(tl.int32)) != 0
    else:
        return x | y


@triton.jit
def differ(x, y):
    """x ^ y of masks."""
    if _INTERPRETED:
        return x.to(tl.int32) != y.to(tl.int32)
    else:
        return x ^ y


@triton.jit
def fmax(x, y):
    """The greater one, the other where one is NaN."""
    x, y = tl.broadcast(x, y)
    return tl.where(x != x, y, tl.where(y != y, x, tl.maximum(x, y)))


@triton.jit
def fmin(x, y):
    """The lesser one, the other where one is NaN."""
    x, y = tl.broadcast(x, y)
    return tl.where(x != x, y, tl.where(y != y, x, tl.minimum(x, y)))


@triton.jit
def sign(x):
    """-1, 0 or 1 in the dtype of x, integers too; 0 for NaN."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def signbit(x):
    """Whether the sign is negative, of zeros and NaN too."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) < 0
    else:
        return x.to(tl.int32, bitcast=True) < 0


@triton.jit
def copysign(x, y):
    """The magnitude of x with the sign of y."""
    x, y = tl.broadcast(x, y)
    a = tl.abs(x)
    return tl.where(signbit(y), -1.0 * a, a)


@triton.jit
def trunc(x):
    """Rounded towards zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):
    """Rounded to the nearest integer, halves to the even one."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        r = tl.where(a < 4503599627370496.0, (a + 4503599627370496.0) - 4503599627370496.0, a)
    else:
        r = tl.where(a < 8388608.0, (a + 8388608.0) - 8388608.0, a)
    return copysign(r, x)


@triton.jit
def fmod(x, y):
    """What is left of x, with its sign; in fp32 exact while |x / y| < 2**28, meaningless beyond."""
    x, y = tl.broadcast(x, y)
    if x.dtype == tl.float64:
        return x % y
    else:
        a, b = tl.abs(x).to(tl.float64), tl.abs(y).to(tl.float64)
        r = a - tl.floor(a / b) * b
        r = tl.where(r < 0, r + b, r).to(tl.float32)
        r = tl.where((b == float("inf")) & (a < float("inf")), tl.abs(x), r)
        return copysign(r, x)


@triton.jit
def remainder(x, y):
    """What is left of x, with the sign of y."""
    x, y = tl.broadcast(x, y)
    r = fmod(x, y)
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)


@triton.jit
def divide_trunc(x, y):
    """x / y rounded towards zero."""
    return trunc(x / y)


@triton.jit
def divide_floor(x, y):
    """Python's x // y, as PyTorch computes it: from the exact remainder."""
    x, y = tl.broadcast(x, y)
    r = fmod(x, y)
    q = (x - r) / y
    q = tl.where((r != 0) & ((y < 0) != (r < 0)), q - 1, q)
    whole = tl.floor(q)
    whole = tl.where(q - whole > 0.5, whole + 1, whole)
    return tl.where(y == 0, x / y, tl.where(q == 0, copysign(whole, x / y), whole))


@triton.jit
def integer_remainder(x, y):
    """Python's x % y of integers."""
    x, y = tl.broadcast(x, y)
    r = x % y
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)


@triton.jit
def integer_divide_trunc(x, y):
    """x / y of integers, rounded towards zero."""
    return x // y


@triton.jit
def integer_divide_floor(x, y):
    """Python's x // y of integers."""
    x, y = tl.broadcast(x, y)
    q, r = x // y, x % y
    return tl.where((r != 0) & ((r < 0) != (y < 0)), q - 1, q)


@triton.jit
def left_shift(x, n):
    """x << n of integers, 0 where n is no number of bits."""
    x, n = tl.broadcast(x, n)
    return tl.where((n < 0) | (n >= x.dtype.primitive_bitwidth), 0, x << n)


@triton.jit
def right_shift(x, n):
    """x >> n of integers, all sign where n is no number of bits."""
    x, n = tl.broadcast(x, n)
    last: tl.constexpr = x.dtype.primitive_bitwidth - 1
    return x >> tl.where((n < 0) | (n > last), last, n)
