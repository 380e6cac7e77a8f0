"""When a scalar of a template and one of a graph are equal."""

from __future__ import annotations

import math
from typing import Any

from torch.fx import Node

from ..graph.ops import is_tensor, value
from ..torch_private import known_true
from .run import SYMBOLIC

_ULPS = 4 * 2.0**-52


def scalar(given: Any) -> Any:
    """A number or symbolic number behind an argument."""
    return value(given) if isinstance(given, Node) else given


def is_scalar(given: Any) -> bool:
    """Whether an argument is no tensor."""
    return not is_tensor(given) if isinstance(given, Node) else True


def is_number(given: Any) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool)


def same_kind(example: Any, given: Any) -> bool:
    """Whether a scalar argument whose example is given may stand for a value."""
    given = scalar(given)
    if is_number(example):
        return is_number(given) or isinstance(given, SYMBOLIC[:2])
    if isinstance(example, (tuple, list)):
        return isinstance(given, (tuple, list))
    return isinstance(given, type(example))


def equal(a: Any, b: Any, *, loose: bool = False) -> bool:
    """Equal for certain; 2 and 2.0 are, 1 and True are not, 0 and -0.0 are not.

    Args:
        loose: numbers that were computed, such as `d ** -0.5` and `1 / sqrt(d)`, may differ by what
            rounding in double precision makes.
    """
    a, b = scalar(a), scalar(b)
    if isinstance(a, (tuple, list)):
        return (
            isinstance(b, (tuple, list))
            and len(a) == len(b)
            and all(equal(x, y, loose=loose) for x, y in zip(a, b, strict=True))
        )
    if isinstance(a, SYMBOLIC) or isinstance(b, SYMBOLIC):
        return isinstance(a, (int, float, *SYMBOLIC)) and known_true(a == b)
    if is_number(a) and is_number(b):
        return _numbers(a, b, loose)
    return type(a) is type(b) and bool(a == b)


def _numbers(a: float, b: float, loose: bool) -> bool:
    if a != a or b != b:
        return a != a and b != b
    if a == 0 and b == 0:
        return math.copysign(1, a) == math.copysign(1, b)
    return a == b or (loose and math.isclose(a, b, rel_tol=_ULPS, abs_tol=0.0))
