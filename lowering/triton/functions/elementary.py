# Triton, which reads annotations itself, types parameters call by call.
# pyright: reportMissingParameterType=false
"""Exponentials, logarithms, hyperbolic functions, arcs and powers."""

from __future__ import annotations

import triton
import triton.language as tl

from .basic import copysign, signbit


@triton.jit
def square(x):
    """x * x."""
    return x * x


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def expm1(x):
    """exp(x) - 1, exact near 0: a Taylor polynomial in fp32, Kahan's correction in fp64."""
    if x.dtype == tl.float64:
        u = tl.exp(x)
        near = tl.where(u == 1.0, x, (u - 1.0) * (x / tl.log(u)))
        return tl.where(tl.abs(x) < 1.0, near, u - 1.0)
    else:
        p = x * (1.0 / 40320) + (1.0 / 5040)
        p = p * x + (1.0 / 720)
        p = p * x + (1.0 / 120)
        p = p * x + (1.0 / 24)
        p = p * x + (1.0 / 6)
        p = p * x + 0.5
        return tl.where(tl.abs(x) < 0.5, x + x * x * p, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x), exact near 0: Kahan's correction by what rounding 1 + x lost."""
    u = 1.0 + x
    d = u - 1.0
    near = tl.where(d == 0.0, x, tl.log(u) * (x / d))
    return tl.where(u == float("inf"), u, near)


@triton.jit
def log10(x):
    """The logarithm to base ten."""
    return tl.log(x) * 0.4342944819032518


@triton.jit
def tanh(x):
    """The hyperbolic tangent; Cephes' polynomial below 0.625 in fp32."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        u = expm1(2.0 * a)
        return copysign(tl.where(a < 20.0, u / (u + 2.0), tl.where(a != a, a, 1.0)), x)
    else:
        z = x * x
        p = z * -5.70498872745e-3 + 2.06390887954e-2
        p = p * z + -5.37397155531e-2
        p = p * z + 1.33314422036e-1
        p = p * z + -3.33332819422e-1
        far = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
        return tl.where(a < 0.625, x + x * z * p, tl.where(x < 0.0, -far, far))


@triton.jit
def sinh(x):
    """The hyperbolic sine."""
    a = tl.abs(x)
    u, e = expm1(a), tl.exp(0.5 * a)
    return copysign(tl.where(a < 20.0, 0.5 * (u + u / (u + 1.0)), (0.5 * e) * e), x)


@triton.jit
def cosh(x):
    """The hyperbolic cosine."""
    e = tl.exp(0.5 * tl.abs(x))
    half = (0.5 * e) * e
    return half + 0.25 / half


@triton.jit
def asinh(x):
    """The inverse of sinh."""
    a = tl.abs(x)
    near = log1p(a + a * a / (1.0 + tl.sqrt(a * a + 1.0)))
    return copysign(tl.where(a < 1e9, near, tl.log(a) + 0.6931471805599453), x)


@triton.jit
def acosh(x):
    """The inverse of cosh, NaN below 1."""
    t = x - 1.0
    far = tl.where(x < 1e9, log1p(t + tl.sqrt(t * (x + 1.0))), tl.log(x) + 0.6931471805599453)
    return tl.where(x < 1.0, float("nan"), far)


@triton.jit
def atanh(x):
    """The inverse of tanh."""
    a = tl.abs(x)
    return copysign(0.5 * log1p(2.0 * a / (1.0 - a)), x)


@triton.jit
def tan(x):
    """The tangent."""
    return tl.sin(x) / tl.cos(x)


@triton.jit
def atan(x):
    """The arctangent: reduced to |x| < tan(pi / 8), then fdlibm's polynomial."""
    a = tl.abs(x)
    far, middle = a > 2.414213562373095, a > 0.4142135623730951
    t = tl.where(far, -1.0 / a, tl.where(middle, (a - 1.0) / (a + 1.0), a))
    z = t * t
    p = z * 1.62858201153657823623e-02 + -3.65315727442169155270e-02
    p = p * z + 4.97687799461593236017e-02
    p = p * z + -5.83357013379057348645e-02
    p = p * z + 6.66107313738753120669e-02
    p = p * z + -7.69187620504482999495e-02
    p = p * z + 9.09088713343650656196e-02
    p = p * z + -1.11111104054623557880e-01
    p = p * z + 1.42857142725034663711e-01
    p = p * z + -1.99999999998764832476e-01
    p = p * z + 3.33333333333329318027e-01
    r = t - t * z * p
    return copysign(
        tl.where(far, 1.5707963267948966 + r, tl.where(middle, 0.7853981633974483 + r, r)), x
    )


@triton.jit
def asin(x):
    """The arcsine."""
    return atan(x / tl.sqrt((1.0 - x) * (1.0 + x)))


@triton.jit
def acos(x):
    """The arccosine."""
    return 2.0 * atan(tl.sqrt((1.0 - x) / (1.0 + x)))


@triton.jit
def atan2(y, x):
    """The angle of the point (x, y)."""
    y, x = tl.broadcast(y, x)
    a, b = tl.abs(x), tl.abs(y)
    low, high = tl.minimum(a, b), tl.maximum(a, b)
    ratio = tl.where(low == high, tl.where(high == 0.0, 0.0, 1.0), low / high)
    r = atan(ratio)
    r = tl.where(b > a, 1.5707963267948966 - r, r)
    r = copysign(tl.where(signbit(x), 3.141592653589793 - r, r), y)
    return tl.where((x != x) | (y != y), x + y, r)


@triton.jit
def hypot(x, y):
    """sqrt(x * x + y * y) without overflow; infinite where either is."""
    x, y = tl.broadcast(x, y)
    a, b = tl.abs(x), tl.abs(y)
    low, high = tl.minimum(a, b), tl.maximum(a, b)
    ratio = low / high
    r = tl.where(high == 0.0, high, high * tl.sqrt(1.0 + ratio * ratio))
    r = tl.where((x != x) | (y != y), x + y, r)
    infinite = (a == float("inf")) | (b == float("inf"))
    return tl.where(infinite, float("inf"), r)


@triton.jit
def power(x, y):
    """x ** y, by way of fp64; of a negative x only where y is an integer."""
    x, y = tl.broadcast(x, y)
    a, b = tl.abs(x).to(tl.float64), y.to(tl.float64)
    r = tl.where(a == 1.0, tl.where(b != b, b, 1.0), tl.exp2(b * tl.log2(a)))
    r = tl.where((x == 1.0) | (b == 0.0), 1.0, r)
    whole = tl.floor(b) == b
    odd = whole & (tl.floor(b * 0.5) * 2.0 != b)
    r = tl.where(signbit(x) & odd, -1.0 * r, r)
    undefined = (x < 0.0) & (a < float("inf")) & (tl.abs(b) < float("inf")) & ~whole
    return tl.where(undefined, float("nan"), r).to(x.dtype)


@triton.jit
def integer_power(x, n):
    """x ** n of integers; 0 for a negative n, but of 1 and -1."""
    x, n = tl.broadcast(x, n)
    odd = (n & 1) != 0
    r, base, left = x * 0 + 1, x, tl.where(n < 0, 0, n)
    for _ in range(x.dtype.primitive_bitwidth):
        r = tl.where((left & 1) != 0, r * base, r)
        base = base * base
        left = left >> 1
    inverse = tl.where(x == 1, 1, tl.where(x == -1, tl.where(odd, -1, 1), 0)).to(r.dtype)
    return tl.where(n < 0, inverse, r)
