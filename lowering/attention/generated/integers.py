"""Whether arithmetic on positions fits int32, in which kernels count them; in eager it is int64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fuser.graph.program import Program

from ...triton.trace import Input, NotPrintable, trace

Interval: TypeAlias = tuple[int, int]

MOST = 1 << 27
"""Positions along a dimension, where their number is not known: of 64 features they fill a GPU."""
FEW = 1 << 15
"""Of so many a square fits."""
INT32 = (-(1 << 31), (1 << 31) - 1)


class _Unknown(Exception):
    """Nothing is known of a number."""


def exceeds(program: Program, inputs: Mapping[str, Input], most: int) -> bool:
    """Whether some integer of a program may be none of 32 bits.

    Args:
        program: of positions, sizes and what is captured.
        inputs: its inputs; positions and sizes are of 64 bits.
        most: positions are less.
    """
    try:
        graph = trace(program, inputs)
    except NotPrintable:
        return False  # and there is no kernel
    found: dict[Node, Interval] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            described = inputs.get(str(node.target))
            if described is not None and _counts(node):
                data = str(node.target)[0] == "c" or described.rank >= 0
                found[node] = _of_dtype(described.dtype) if data else (0, most)
        elif node.op == "call_function" and not _fits(node, found):
            return True
    return False


def _fits(node: Node, found: dict[Node, Interval]) -> bool:
    """Whether what an operator reads and gives does; what it gives is put down."""
    given = [a for a in node.args if isinstance(a, Node)]
    integers = [a for a in given if a in found]
    if not integers and not _counts(node):
        return True
    if any(_is_wide(a) for a in integers):  # of 64 bits in kernels too, and so is the result
        if _counts(node):
            found[node] = _of_dtype(_dtype(node))
        return True
    numbers = [a for a in node.args if isinstance(a, int) and not isinstance(a, bool)]
    if integers and not all(_inside((n, n), INT32) for n in numbers):
        return False
    if not _counts(node):
        return True
    try:
        interval = _interval(node, found)
    except _Unknown:
        return False
    own = _of_dtype(_dtype(node))
    if not _inside(interval, own):
        interval = own  # it wraps
    found[node] = interval
    return _inside(interval, INT32)


def _dtype(node: Node) -> torch.dtype:
    return node.meta["val"].dtype


def _counts(node: Node) -> bool:
    """Whether it is an integer."""
    dtype = _dtype(node)
    return not dtype.is_floating_point and not dtype.is_complex and dtype is not torch.bool


def _is_wide(node: Node) -> bool:
    """Whether it is of 64 bits whatever positions are: data, and what that is combined with."""
    if node.op == "placeholder":
        return str(node.target)[0] == "c" and _dtype(node) is torch.int64 and _ndim(node) > 0
    return any(isinstance(a, Node) and _counts(a) and _is_wide(a) for a in node.args)


def _ndim(node: Node) -> int:
    return node.meta["val"].ndim


def _of_dtype(dtype: torch.dtype) -> Interval:
    info = torch.iinfo(dtype)
    return info.min, info.max


def _inside(inner: Interval, outer: Interval) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


# -- what operators give


def _interval(node: Node, found: Mapping[Node, Interval]) -> Interval:
    """Of an operator on integers.

    Raises:
        _Unknown: the operator is not known, or it takes a number that is none.
    """
    target: Any = node.target
    rule = _RULES.get(str(target.overloadpacket.__name__))
    if rule is None:
        raise _Unknown
    return rule(node, lambda argument: _of(argument, found))


def _of(argument: Any, found: Mapping[Node, Interval]) -> Interval:
    if isinstance(argument, Node):
        if argument in found:
            return found[argument]
        if _dtype(argument) is torch.bool:
            return 0, 1
        raise _Unknown
    if isinstance(argument, int):
        return int(argument), int(argument)
    raise _Unknown


Reader: TypeAlias = Callable[[Any], Interval]
Rule: TypeAlias = Callable[[Node, Reader], Interval]


def _hull(values: Any) -> Interval:
    values = list(values)
    return min(values), max(values)


def _ends(function: Callable[[int, int], int]) -> Rule:
    """Of a function that is monotonic in each operand, or linear."""

    def rule(node: Node, read: Reader) -> Interval:
        x, y = (read(a) for a in node.args[:2])
        alpha = node.kwargs.get("alpha", 1)
        if not isinstance(alpha, int):
            raise _Unknown
        return _hull(function(a, alpha * b) for a, b in product(x, y))

    return rule


def _abs(node: Node, read: Reader) -> Interval:
    low, high = read(node.args[0])
    return (0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _negated(node: Node, read: Reader) -> Interval:
    low, high = read(node.args[0])
    return -high, -low


def _quotient(node: Node, read: Reader) -> Interval:
    """Rounded either way, and no larger than what is divided."""
    low, high = read(node.args[0])
    return min(low, -high, -1), max(-low, high, 1)


def _rest(node: Node, read: Reader) -> Interval:
    """Of a division by anything: less than the divisor, of either sign."""
    largest = max(map(abs, read(node.args[1])))
    return -largest, largest


def _power(node: Node, read: Reader) -> Interval:
    exponent = node.args[1]
    if not isinstance(exponent, int) or not 0 <= exponent <= 64:
        raise _Unknown
    largest = max(map(abs, read(node.args[0])))
    return -(largest**exponent) - 1, largest**exponent + 1


def _shifted(node: Node, read: Reader) -> Interval:
    (low, high), (least, most) = read(node.args[0]), read(node.args[1])
    if least < 0 or most > 31:
        raise _Unknown
    return _hull(x << by for x, by in product((low, high), (least, most)))


def _bits(node: Node, read: Reader) -> Interval:
    """No longer than the longer operand."""
    ends = [end for a in node.args[:2] for end in read(a)]
    length = max(end.bit_length() for end in ends)
    return -(1 << length), (1 << length) - 1


def _clamped(node: Node, read: Reader) -> Interval:
    target: Any = node.target
    bounds = [*node.args[1:], None]
    if target.overloadpacket.__name__ == "clamp_max":
        bounds = [None, *bounds]
    low, high = read(node.args[0])
    if bounds[0] is not None:
        least, most = read(bounds[0])
        low, high = max(low, least), max(high, most)
    if bounds[1] is not None:
        least, most = read(bounds[1])
        low, high = min(low, least), min(high, most)
    return low, high


def _of_ends(choose: Callable[..., int]) -> Rule:
    """The lesser or the greater one."""

    def rule(node: Node, read: Reader) -> Interval:
        x, y = (read(a) for a in node.args[:2])
        return choose(x[0], y[0]), choose(x[1], y[1])

    return rule


def _same(node: Node, read: Reader) -> Interval:
    """Of what it reads, whichever that is."""
    return _hull(end for a in node.args if a is not None for end in read(a))


def _chosen(node: Node, read: Reader) -> Interval:
    return _hull(end for a in node.args[1:3] for end in read(a))


def _gathered(node: Node, read: Reader) -> Interval:
    return read(node.args[0])


def _copied(node: Node, read: Reader) -> Interval:
    source = node.args[0]
    if isinstance(source, Node) and _dtype(source).is_floating_point:
        return _of_dtype(_dtype(node))
    return read(source)


_RULES: dict[str, Rule] = {
    "add": _ends(lambda x, y: x + y), "sub": _ends(lambda x, y: x - y),
    "rsub": _ends(lambda x, y: y - x), "mul": _ends(lambda x, y: x * y),
    "abs": _abs, "neg": _negated, "sign": lambda node, read: (-1, 1),
    "div": _quotient, "floor_divide": _quotient, "remainder": _rest, "fmod": _rest,
    "pow": _power, "square": lambda node, read: _hull((0, max(x * x for x in read(node.args[0])))),
    "__lshift__": _shifted, "bitwise_left_shift": _shifted,
    "__rshift__": _same, "bitwise_right_shift": _same,
    "bitwise_and": _bits, "bitwise_or": _bits, "bitwise_xor": _bits, "bitwise_not": _bits,
    "minimum": _of_ends(min), "maximum": _of_ends(max), "clamp": _clamped, "clamp_min": _clamped,
    "clamp_max": _clamped,
    "where": _chosen, "index": _gathered, "_to_copy": _copied, "clone": _gathered,
    "alias": _gathered,
}  # fmt: skip
