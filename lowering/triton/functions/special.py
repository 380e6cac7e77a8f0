# Triton, which reads annotations itself, types parameters call by call.
# pyright: reportMissingParameterType=false
"""Error and gamma functions, computed in fp64 and rounded once: rare, and delicate near roots."""

from __future__ import annotations

import triton
import triton.language as tl

from .basic import copysign, round_even


@triton.jit
def erfc(x):
    """1 - erf(x), exact for large x: the rational functions of Cephes' ndtr.c."""
    v = x.to(tl.float64)
    a = tl.abs(v)
    p = a * 2.46196981473530512524e-10 + 5.64189564831068821977e-1
    p = p * a + 7.46321056442269912687e0
    p = p * a + 4.86371970985681366614e1
    p = p * a + 1.96520832956077098242e2
    p = p * a + 5.26445194995477358631e2
    p = p * a + 9.34528527171957607540e2
    p = p * a + 1.02755188689515710272e3
    p = p * a + 5.57535335369399327526e2
    q = a + 1.32281951154744992508e1
    q = q * a + 8.67072140885989742329e1
    q = q * a + 3.54937778887819891062e2
    q = q * a + 9.75708501743205489753e2
    q = q * a + 1.82390916687909736289e3
    q = q * a + 2.24633760818710981792e3
    q = q * a + 1.65666309194161350182e3
    q = q * a + 5.57535340817727675546e2
    r = a * 5.64189583547755073984e-1 + 1.27536670759978104416e0
    r = r * a + 5.01905042251180477414e0
    r = r * a + 6.16021097993053585195e0
    r = r * a + 7.40974269950448939160e0
    r = r * a + 2.97886665372100240670e0
    s = a + 2.26052863220117276590e0
    s = s * a + 9.39603524938001434673e0
    s = s * a + 1.20489539808096656605e1
    s = s * a + 1.70814450747565897222e1
    s = s * a + 9.60896809063285878198e0
    s = s * a + 3.36907645100081516050e0
    tail = tl.exp(-a * a) * tl.where(a < 8.0, p / q, r / s)
    tail = tl.where(a > 30.0, 0.0, tail)
    tail = tl.where(v < 0.0, 2.0 - tail, tail)
    return tl.where(a < 1.0, 1.0 - tl.erf(v), tl.where(v != v, v, tail)).to(x.dtype)


@triton.jit
def erfinv(x):
    """The inverse of erf: PyTorch's rational start, then two steps of Newton."""
    y = x.to(tl.float64)
    a = tl.abs(y)
    z = a * a
    p = ((-0.140543331 * z + 0.914624893) * z - 1.645349621) * z + 0.886226899
    q = (((0.012229801 * z - 0.329097515) * z + 1.442710462) * z - 2.118377725) * z + 1.0
    w = tl.sqrt(-tl.log((1.0 - a) * 0.5))
    tail = ((1.641345311 * w + 3.429567803) * w - 1.624906493) * w - 1.970840454
    tail = tail / ((1.637067800 * w + 3.543889200) * w + 1.0)
    r = tl.where(a <= 0.7, a * p / q, tail)
    r -= (tl.erf(r) - a) / (1.1283791670955126 * tl.exp(-r * r))
    r -= (tl.erf(r) - a) / (1.1283791670955126 * tl.exp(-r * r))
    r = tl.where(a == 1.0, float("inf"), tl.where(a > 1.0, float("nan"), r))
    return copysign(r, y).to(x.dtype)


@triton.jit
def _sin_pi(x):
    """|sin(pi x)|."""
    return tl.abs(tl.sin(3.141592653589793 * (x - round_even(x))))


@triton.jit
def lgamma(x):
    """log |gamma(x)|: Lanczos' approximation (g = 7), reflected below one half."""
    v = x.to(tl.float64)
    z = tl.where(v < 0.5, -v, v - 1.0)
    s = 0.99999999999980993 + 676.5203681218851 / (z + 1.0)
    s += -1259.1392167224028 / (z + 2.0)
    s += 771.32342877765313 / (z + 3.0)
    s += -176.61502916214059 / (z + 4.0)
    s += 12.507343278686905 / (z + 5.0)
    s += -0.13857109526572012 / (z + 6.0)
    s += 9.9843695780195716e-6 / (z + 7.0)
    s += 1.5056327351493116e-7 / (z + 8.0)
    t = z + 7.5
    r = 0.9189385332046727 + (z + 0.5) * tl.log(t) - t + tl.log(s)
    r = tl.where(v < 0.5, 1.1447298858494002 - tl.log(_sin_pi(v)) - r, r)
    r = tl.where((v == 1.0) | (v == 2.0), 0.0, r)
    return tl.where(tl.abs(v) == float("inf"), float("inf"), r).to(x.dtype)


@triton.jit
def digamma(x):
    """The derivative of lgamma: eight steps up, then the asymptotic series."""
    v = x.to(tl.float64)
    u = tl.where(v < 0.0, 1.0 - v, v)
    r = -1.0 / u
    for i in range(1, 8):
        r -= 1.0 / (u + i)
    u += 8.0
    w = 1.0 / (u * u)
    series = w * (691.0 / 32760) - (1.0 / 132)
    series = series * w + (1.0 / 240)
    series = series * w - (1.0 / 252)
    series = series * w + (1.0 / 120)
    series = series * w - (1.0 / 12)
    r += tl.log(u) - 0.5 / u + series * w
    f = v - round_even(v)
    reflected = r - 3.141592653589793 * tl.cos(3.141592653589793 * f) / tl.sin(
        3.141592653589793 * f
    )
    r = tl.where(v < 0.0, tl.where(f == 0.0, float("nan"), reflected), r)
    r = tl.where(v == float("inf"), v, r)
    return tl.where(v == 0.0, copysign(v * 0.0 + float("inf"), -1.0 * v), r).to(x.dtype)


@triton.jit
def trigamma(x):
    """The derivative of digamma."""
    v = x.to(tl.float64)
    u = tl.where(v < 0.5, 1.0 - v, v)
    r = 1.0 / (u * u)
    for i in range(1, 8):
        r += 1.0 / ((u + i) * (u + i))
    u += 8.0
    w = 1.0 / (u * u)
    series = w * (-691.0 / 2730) + (5.0 / 66)
    series = series * w - (1.0 / 30)
    series = series * w + (1.0 / 42)
    series = series * w - (1.0 / 30)
    series = series * w + (1.0 / 6)
    r += (1.0 + 0.5 / u + series * w) / u
    s = _sin_pi(v)
    return tl.where(v < 0.5, 9.869604401089358 / (s * s) - r, r).to(x.dtype)
