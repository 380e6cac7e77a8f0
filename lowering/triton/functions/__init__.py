"""What `triton.language` lacks, in operations that the interpreter and every GPU have.

Generated code imports these by name; nothing else may, as they need triton. All take tiles or
scalars of Triton (not bare numbers) in fp32 or fp64 unless they say otherwise, and are within a
few units in the last place of PyTorch's.

- `basic.py`: rounding, signs, choices and divisions.
- `eight_bits.py`: floating-point numbers of eight bits, as bytes.
- `elementary.py`: exponentials, logarithms, hyperbolic functions, arcs, powers.
- `order.py`: numbers in the order of `topk`.
- `special.py`: error and gamma functions, by way of fp64.
"""

from .basic import (
    bfloat16,
    both,
    copysign,
    differ,
    divide_floor,
    divide_trunc,
    either,
    float16,
    fmax,
    fmin,
    fmod,
    integer_divide_floor,
    integer_divide_trunc,
    integer_remainder,
    left_shift,
    maximum,
    minimum,
    remainder,
    right_shift,
    round_even,
    sign,
    signbit,
    trunc,
)
from .eight_bits import float8_e4m3fn, float8_e5m2
from .elementary import (
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    cosh,
    expm1,
    hypot,
    integer_power,
    log1p,
    log10,
    power,
    sigmoid,
    sinh,
    square,
    tan,
    tanh,
)
from .order import number_of, place_of, ranked, without
from .special import digamma, erfc, erfinv, lgamma, trigamma

__all__ = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bfloat16",
    "both",
    "copysign",
    "cosh",
    "differ",
    "digamma",
    "divide_floor",
    "divide_trunc",
    "either",
    "erfc",
    "erfinv",
    "expm1",
    "float8_e4m3fn",
    "float8_e5m2",
    "float16",
    "fmax",
    "fmin",
    "fmod",
    "hypot",
    "integer_divide_floor",
    "integer_divide_trunc",
    "integer_power",
    "integer_remainder",
    "left_shift",
    "lgamma",
    "log1p",
    "log10",
    "maximum",
    "minimum",
    "number_of",
    "place_of",
    "power",
    "ranked",
    "remainder",
    "right_shift",
    "round_even",
    "sigmoid",
    "sign",
    "signbit",
    "sinh",
    "square",
    "tan",
    "tanh",
    "trigamma",
    "trunc",
    "without",
]
