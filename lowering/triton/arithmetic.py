"""ATen pointwise operators whose text depends on their arguments; the rest is in `pointwise.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .trace import NotPrintable
from .values import Value, fill, held, literal

if TYPE_CHECKING:
    from .emitter import Site


def add(site: Site) -> Value:
    """x + alpha y; of masks, either."""
    return _sum(site, "+")


def sub(site: Site) -> Value:
    """x - alpha y."""
    return _sum(site, "-")


def _sum(site: Site, sign: str) -> Value:
    if site.dtype is torch.bool:
        return site.exact(fill("either({0}, {1})", site.tensors(2)))
    x, y = site.operands(2)
    alpha = literal(site.option(2, "alpha", 1), held(site.dtype))
    if sign == "-" and y.number == 0 and x.dtype == site.dtype:
        return x
    scaled = y.text if alpha.number == 1 else f"{alpha.text} * {y.text}"
    return site.result(f"{x.text} {sign} {scaled}")


def mul(site: Site) -> Value:
    """x y; of masks, both."""
    if site.dtype is torch.bool:
        return site.exact(fill("both({0}, {1})", site.tensors(2)))
    x, y = site.operands(2)
    for one, other in ((x, y), (y, x)):
        if one.number == 1 and other.dtype == site.dtype:
            return other
    return site.result(f"{x.text} * {y.text}")


def div(site: Site) -> Value:
    """x / y, perhaps rounded to an integer."""
    mode = site.option(2, "rounding_mode")
    if mode is not None:
        kind = "" if site.dtype.is_floating_point else "integer_"
        return site.result(fill(f"{kind}divide_{mode}({{0}}, {{1}})", site.tensors(2)))
    x, y = site.operands(2)
    if y.number == 1 and x.dtype == site.dtype:
        return x
    return site.result(f"{x.text} / {y.text}")


def remainder(site: Site) -> Value:
    """Python's x % y."""
    kind = "" if site.dtype.is_floating_point else "integer_"
    return site.result(fill(f"{kind}remainder({{0}}, {{1}})", site.tensors(2, site.dtype)))


def where(site: Site) -> Value:
    """One of two operands; Triton reads the dtype off one that is no literal."""
    condition = site.operand(site.option(0, "condition"), torch.bool)
    x, y = site.operand(site.option(1, "self")), site.operand(site.option(2, "other"))
    if condition.number is not None or x == y:
        return y if condition.number is False else x
    if x.number is not None and y.number is not None:
        x = site.emitter.tensor(x)
    return site.exact(f"tl.where({condition.text}, {x.text}, {y.text})")


def clamp(site: Site) -> Value:
    """Between two bounds, either of which may be absent; NaN where anything is NaN."""
    (x,) = site.tensors(1, site.dtype)
    for position, name, function in ((1, "min", "maximum"), (2, "max", "minimum")):
        bound = site.option(position, name)
        if bound is not None:
            (limit,) = site.plain([site.operand(bound)])
            x = site.exact(f"{function}({x.text}, {limit.text})")
    return x


def round_(site: Site) -> Value:
    """To integers, or to decimals, as PyTorch scales them."""
    (x,) = site.tensors(1, site.dtype)
    decimals = site.option(1, "decimals", 0)
    if not site.dtype.is_floating_point:
        return x
    if decimals == 0:
        return site.exact(f"round_even({x.text})")
    scale = literal(10.0 ** abs(decimals), held(site.dtype)).text
    up, down = ("*", "/") if decimals > 0 else ("/", "*")
    return site.result(f"round_even({x.text} {up} {scale}) {down} {scale}")


def signbit(site: Site) -> Value:
    """Whether the sign is negative, of zeros too."""
    if site.source is torch.bool:
        return site.constant(False)
    text = "signbit({0})" if site.source.is_floating_point else "{0} < 0"
    return site.exact(fill(text, site.tensors(1, site.source)))


_POWERS = {
    0.5: "tl.sqrt({0})",
    -0.5: "tl.rsqrt({0})",
    -1: "1.0 / {0}",
    2: "{0} * {0}",
    3: "{0} * {0} * {0}",
    4: "square({0} * {0})",
    -2: "1.0 / ({0} * {0})",
}


def pow_(site: Site) -> Value:
    """x ** y, by multiplication where y is a small number."""
    x, y = site.operands(2, site.dtype)
    if y.number == 1 and x.dtype == site.dtype:
        return x
    if y.number == 0:
        return site.constant(1)
    is_float = site.dtype.is_floating_point
    if y.number is not None and y.number in _POWERS and (is_float or y.number > 1):
        return site.result(fill(_POWERS[y.number], [x]))
    if x.number == 2 and is_float:
        return site.result(f"tl.exp2({y.text})")
    text = "power({0}, {1})" if is_float else "integer_power({0}, {1})"
    return site.result(fill(text, map(site.emitter.tensor, (x, y))))


def polygamma(site: Site) -> Value:
    """The derivative of digamma, which is the only one there is."""
    if site.option(0, "n") != 1:
        raise NotPrintable("polygamma of an order other than one has no Triton text")
    x = site.emitter.tensor(site.operand(site.option(1, "self")))
    return site.result(f"trigamma({x.text})")
