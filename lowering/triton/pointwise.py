"""ATen pointwise operators in Triton, by name.

A rule takes a `Site` and gives the value of its node. In the texts `{0}` is the first operand, and
functions that are not `tl.something` are those of `functions.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from . import arithmetic
from .values import Value, fill, held

if TYPE_CHECKING:
    from .emitter import Site

Rule = Callable[["Site"], Value]


def _computed(text: str, count: int = 1) -> Rule:
    """A function: operands in the dtype of the node, computed wider, the result rounded."""
    return lambda site: site.result(fill(text, site.tensors(count, site.dtype)))


def _chosen(text: str, count: int = 1, *, integer: str = "", boolean: str = "") -> Rule:
    """The result is one of the operands, or exact where they are; other texts for other kinds."""

    def rule(site: Site) -> Value:
        form = text if site.dtype.is_floating_point else integer or text
        form = boolean if site.dtype is torch.bool and boolean else form
        operands = site.operands(count, site.dtype)
        if form.startswith(_BARE):
            return site.exact(fill(form, site.plain(operands)))
        return site.exact(fill(form, [site.emitter.tensor(value) for value in operands]))

    return rule


_BARE = ("maximum(", "minimum(", "{0} & ", "{0} | ", "{0} ^ ", "{0} % ")
"""Texts that take bare numbers as operands."""


def _integral(text: str) -> Rule:
    """Rounding to integers, which integers are already."""

    def rule(site: Site) -> Value:
        (x,) = site.operands(1, site.dtype)
        return site.exact(text.format(x.text)) if site.dtype.is_floating_point else x

    return rule


def _compared(operator: str) -> Rule:
    def rule(site: Site) -> Value:
        dtype = torch.int32 if site.promoted is torch.bool else site.promoted
        return site.exact(fill(f"{{0}} {operator} {{1}}", site.operands(2, dtype)))

    return rule


def _logical(text: str, count: int = 2) -> Rule:
    return lambda site: site.exact(fill(text, site.tensors(count, torch.bool)))


def _tested(text: str, integers: bool) -> Rule:
    """A property of one floating operand; all integers have it, or none."""

    def rule(site: Site) -> Value:
        if not site.source.is_floating_point:
            return site.constant(integers)
        return site.exact(fill(text, site.tensors(1, site.source)))

    return rule


def _gathered(site: Site) -> Value:
    """An element of a table, whose strides are called `{table}_0`, `{table}_1`, ..."""
    table, *indices = site.gathered
    terms = [f"{i.text} * {table.text}_{dim}" for dim, i in enumerate(indices)]
    widen = ".to(tl.float32)" if held(site.dtype) != site.dtype else ""
    if site.dtype is torch.bool:  # the pointer may be one to bytes
        widen = " != 0"
    return site.exact(f"tl.load({' + '.join([table.text, *terms])}){widen}")


RULES: dict[str, Rule] = {
    "index": _gathered,
    "_to_copy": lambda site: site.operand(site.option(0, "self")),
    "scalar_tensor": lambda site: site.constant(site.option(0, "s")),
    "add": arithmetic.add,
    "sub": arithmetic.sub,
    "mul": arithmetic.mul,
    "div": arithmetic.div,
    "remainder": arithmetic.remainder,
    "pow": arithmetic.pow_,
    "where": arithmetic.where,
    "clamp": arithmetic.clamp,
    "round": arithmetic.round_,
    "signbit": arithmetic.signbit,
    "polygamma": arithmetic.polygamma,
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
    "tan": _computed("tan({0})"),
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
    "relu": _chosen("maximum({0}, 0.0)", integer="tl.where({0} > 0, {0}, 0)"),
    "maximum": _chosen("maximum({0}, {1})", 2, boolean="either({0}, {1})"),
    "minimum": _chosen("minimum({0}, {1})", 2, boolean="both({0}, {1})"),
    "fmax": _chosen("fmax({0}, {1})", 2, integer="maximum({0}, {1})", boolean="either({0}, {1})"),
    "fmin": _chosen("fmin({0}, {1})", 2, integer="minimum({0}, {1})", boolean="both({0}, {1})"),
    "copysign": _chosen("copysign({0}, {1})", 2),
    "fmod": _chosen("fmod({0}, {1})", 2, integer="{0} % {1}"),
    "bitwise_and": _chosen("{0} & {1}", 2, boolean="both({0}, {1})"),
    "bitwise_or": _chosen("{0} | {1}", 2, boolean="either({0}, {1})"),
    "bitwise_xor": _chosen("{0} ^ {1}", 2, boolean="differ({0}, {1})"),
    "bitwise_not": _chosen("~{0}", boolean="{0} == 0"),
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
    "logical_and": _logical("both({0}, {1})"),
    "logical_or": _logical("either({0}, {1})"),
    "logical_xor": _logical("differ({0}, {1})"),
    "logical_not": _logical("{0} == 0", 1),
    "isnan": _tested("{0} != {0}", False),
    "isinf": _tested('tl.abs({0}) == float("inf")', False),
    "isfinite": _tested('tl.abs({0}) < float("inf")', True),
}
