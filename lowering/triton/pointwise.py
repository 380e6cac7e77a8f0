"""ATen pointwise operators in Triton, by name.

A rule takes a `Site` and gives the value of its node. In the texts `{0}` is the first operand, and
functions that are not `tl.something` are those of `functions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from .trace import NotPrintable
from .values import Value, held, literal

if TYPE_CHECKING:
    from .emitter import Site

Rule = Callable[["Site"], Value]
RULES: dict[str, Rule] = {}


def _rule(function: Rule) -> Rule:
    RULES[function.__name__.strip("_")] = function
    return function


def _fill(text: str, values: list[Value]) -> str:
    return text.format(*(value.text for value in values))


def _computed(text: str, count: int = 1) -> Rule:
    """Arithmetic: operands in the dtype in which eager computes, the result rounded."""
    return lambda site: site.result(_fill(text, site.tensors(count)))


def _chosen(text: str, count: int = 1, *, integer: str = "", boolean: str = "") -> Rule:
    """The result is one of the operands, or exact where they are; other texts for other kinds."""

    def rule(site: Site) -> Value:
        form = text if site.dtype.is_floating_point else integer or text
        form = boolean if site.dtype is torch.bool and boolean else form
        return site.exact(_fill(form, site.tensors(count, site.dtype)))

    return rule


def _integral(text: str) -> Rule:
    """Rounding to integers, which integers are already."""

    def rule(site: Site) -> Value:
        (x,) = site.operands(1, site.dtype)
        return site.exact(text.format(x.text)) if site.dtype.is_floating_point else x

    return rule


def _compared(operator: str) -> Rule:
    def rule(site: Site) -> Value:
        dtype = torch.int32 if site.promoted is torch.bool else site.promoted
        return site.exact(_fill(f"{{0}} {operator} {{1}}", site.operands(2, dtype)))

    return rule


def _logical(text: str, count: int = 2) -> Rule:
    return lambda site: site.exact(_fill(text, site.operands(count, torch.bool)))


def _tested(text: str, integers: bool) -> Rule:
    """A property of one floating operand; all integers have it, or none."""

    def rule(site: Site) -> Value:
        if not site.source.is_floating_point:
            return site.constant(integers)
        return site.exact(_fill(text, site.tensors(1, site.source)))

    return rule


_TABLE: dict[str, Rule] = {
    "exp": _computed("tl.exp({0})"),
    "exp2": _computed("tl.exp2({0})"),
    "expm1": _computed("expm1({0})"),
    "log": _computed("tl.log({0})"),
    "log2": _computed("tl.log2({0})"),
    "log10": _computed("log10({0})"),
    "log1p": _computed("log1p({0})"),
    "sqrt": _computed("tl.sqrt({0})"),
    "rsqrt": _computed("tl.rsqrt({0})"),
    "reciprocal": _computed("1.0 / {0}"),
    "sin": _computed("tl.sin({0})"),
    "cos": _computed("tl.cos({0})"),
    "tan": _computed("tl.sin({0}) / tl.cos({0})"),
    "asin": _computed("asin({0})"),
    "acos": _computed("acos({0})"),
    "atan": _computed("atan({0})"),
    "sinh": _computed("sinh({0})"),
    "cosh": _computed("cosh({0})"),
    "tanh": _computed("tanh({0})"),
    "asinh": _computed("asinh({0})"),
    "acosh": _computed("acosh({0})"),
    "atanh": _computed("atanh({0})"),
    "erf": _computed("tl.erf({0})"),
    "erfc": _computed("erfc({0})"),
    "erfinv": _computed("erfinv({0})"),
    "lgamma": _computed("lgamma({0})"),
    "digamma": _computed("digamma({0})"),
    "sigmoid": _computed("sigmoid({0})"),
    "atan2": _computed("atan2({0}, {1})", 2),
    "hypot": _computed("hypot({0}, {1})", 2),
    "abs": _chosen("tl.abs({0})", boolean="{0}"),
    "neg": _chosen("-1.0 * {0}", integer="-{0}"),
    "sign": _chosen("sign({0})", boolean="{0}"),
    "sgn": _chosen("sign({0})", boolean="{0}"),
    "relu": _chosen("maximum({0}, 0.0)", integer="maximum({0}, 0)"),
    "maximum": _chosen("maximum({0}, {1})", 2, boolean="{0} | {1}"),
    "minimum": _chosen("minimum({0}, {1})", 2, boolean="{0} & {1}"),
    "fmax": _chosen("fmax({0}, {1})", 2, integer="maximum({0}, {1})", boolean="{0} | {1}"),
    "fmin": _chosen("fmin({0}, {1})", 2, integer="minimum({0}, {1})", boolean="{0} & {1}"),
    "copysign": _chosen("copysign({0}, {1})", 2),
    "fmod": _chosen("fmod({0}, {1})", 2, integer="{0} % {1}"),
    "remainder": _chosen("remainder({0}, {1})", 2, integer="integer_remainder({0}, {1})"),
    "bitwise_and": _chosen("{0} & {1}", 2),
    "bitwise_or": _chosen("{0} | {1}", 2),
    "bitwise_xor": _chosen("{0} ^ {1}", 2),
    "bitwise_not": _chosen("~{0}"),
    "bitwise_left_shift": _chosen("left_shift({0}, {1})", 2),
    "bitwise_right_shift": _chosen("right_shift({0}, {1})", 2),
    "__lshift__": _chosen("left_shift({0}, {1})", 2),
    "__rshift__": _chosen("right_shift({0}, {1})", 2),
    "floor": _integral("tl.floor({0})"),
    "ceil": _integral("tl.ceil({0})"),
    "trunc": _integral("trunc({0})"),
    "eq": _compared("=="),
    "ne": _compared("!="),
    "lt": _compared("<"),
    "le": _compared("<="),
    "gt": _compared(">"),
    "ge": _compared(">="),
    "logical_and": _logical("{0} & {1}"),
    "logical_or": _logical("{0} | {1}"),
    "logical_xor": _logical("{0} ^ {1}"),
    "logical_not": _logical("~{0}", 1),
    "isnan": _tested("{0} != {0}", False),
    "isinf": _tested('tl.abs({0}) == float("inf")', False),
    "isfinite": _tested('tl.abs({0}) < float("inf")', True),
}
RULES.update(_TABLE)


@_rule
def scalar_tensor(site: Site) -> Value:
    return site.constant(site.option(0, "s"))


@_rule
def _to_copy(site: Site) -> Value:
    return site.operand(site.option(0, "self"))


RULES["_to_copy"] = _to_copy


@_rule
def add(site: Site) -> Value:
    return _sum(site, "+", "|")


@_rule
def sub(site: Site) -> Value:
    return _sum(site, "-", "^")


def _sum(site: Site, operator: str, of_bools: str) -> Value:
    x, y = site.operands(2)
    alpha = literal(site.option(2, "alpha", 1), held(site.dtype))
    if site.dtype is torch.bool:
        return site.exact(f"{x.text} {of_bools} {y.text}")
    if operator == "-" and y.number == 0 and x.dtype == site.dtype:
        return x
    scaled = y.text if alpha.number == 1 else f"{alpha.text} * {y.text}"
    return site.result(f"{x.text} {operator} {scaled}")


@_rule
def mul(site: Site) -> Value:
    x, y = site.operands(2)
    if site.dtype is torch.bool:
        return site.exact(f"{x.text} & {y.text}")
    for one, other in ((x, y), (y, x)):
        if one.number == 1 and other.dtype == site.dtype:
            return other
    return site.result(f"{x.text} * {y.text}")


@_rule
def div(site: Site) -> Value:
    mode = site.option(2, "rounding_mode")
    if mode is not None:
        return _div_mode(site, mode)
    x, y = site.operands(2)
    if y.number == 1 and x.dtype == site.dtype:
        return x
    return site.result(f"{x.text} / {y.text}")


def _div_mode(site: Site, mode: str) -> Value:
    kind = "" if site.dtype.is_floating_point else "integer_"
    x, y = site.tensors(2)
    return site.result(f"{kind}divide_{mode}({x.text}, {y.text})")


@_rule
def where(site: Site) -> Value:
    condition, *branches = (site.option(i, "") for i in range(3))
    chosen = site.operand(condition, torch.bool)
    x, y = (site.operand(branch) for branch in branches)
    if chosen.number is not None or x == y:
        return y if chosen.number is False else x
    if x.number is not None and y.number is not None:
        x = site.emitter.tensor(x)
    return site.exact(f"tl.where({chosen.text}, {x.text}, {y.text})")


@_rule
def clamp(site: Site) -> Value:
    x = site.tensors(1, site.dtype)[0]
    for position, name, function in ((1, "min", "maximum"), (2, "max", "minimum")):
        bound = site.option(position, name)
        if bound is not None:
            (limit,) = site.plain([site.operand(bound)])
            x = site.exact(f"{function}({x.text}, {limit.text})")
    return x


@_rule
def round(site: Site) -> Value:
    x = site.tensors(1)[0]
    if not site.dtype.is_floating_point:
        return x
    decimals = site.option(1, "decimals", 0)
    if decimals == 0:
        return site.exact(f"round_even({x.text})")
    scale = literal(10.0 ** abs(decimals), held(site.dtype)).text
    up, down = ("*", "/") if decimals > 0 else ("/", "*")
    return site.result(f"round_even({x.text} {up} {scale}) {down} {scale}")


@_rule
def signbit(site: Site) -> Value:
    (x,) = site.tensors(1, site.source)
    if site.source is torch.bool:
        return site.constant(False)
    return site.exact(f"signbit({x.text})" if site.source.is_floating_point else f"{x.text} < 0")


_POWERS = {
    0.5: "tl.sqrt({0})",
    -0.5: "tl.rsqrt({0})",
    -1: "1.0 / {0}",
    2: "{0} * {0}",
    3: "{0} * {0} * {0}",
    4: "square({0} * {0})",
    -2: "1.0 / ({0} * {0})",
}


@_rule
def pow(site: Site) -> Value:
    x, y = site.tensors(2)
    if not site.dtype.is_floating_point:
        return site.exact(f"integer_power({x.text}, {y.text})")
    exponent, base = y.number, x.number
    if exponent == 1 and x.dtype == site.dtype:
        return x
    if exponent == 0:
        return site.constant(1)
    if exponent in _POWERS:
        return site.result(_POWERS[exponent].format(x.text))
    if base == 2:
        return site.result(f"tl.exp2({y.text})")
    x, y = site.emitter.tensor(x), site.emitter.tensor(y)
    return site.result(f"power({x.text}, {y.text})")


@_rule
def polygamma(site: Site) -> Value:
    if site.option(0, "n") != 1:
        raise NotPrintable("polygamma of an order above one has no Triton text")
    argument = site.option(1, "self")
    assert isinstance(argument, Node)
    return site.result(f"trigamma({site.emitter.tensor(site.wide(argument)).text})")
