"""Which masks may set a score to -inf in place of a number, and behind everything else.

A mask of -inf may move behind everything that leaves -inf as it is. A mask of a finite number may
become one of -inf where every query certainly keeps a key of moderate score: beside that, the
masked keys have no weight at all. Elsewhere a query without keys would spread over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
from sympy.logic.boolalg import Boolean
from torch.fx import Graph, Node

from fuser.graph.axes import Dims, leaves
from fuser.graph.positional import FALSE, TRUE, at_least_zero, both

from ..conditions import IK, IQ, certain, normal_form
from .follow import Follower
from .masks import Mask, Parts, is_low
from .places import KEY, QUERY, Places

_MARGIN = 8
"""A mask's number is at least so many times larger than everything beside it."""
_MAX_CANDIDATES = 16
_Sizes: TypeAlias = "tuple[tuple[sympy.Symbol, sympy.Expr], ...]"


def movable(
    parts: Parts, follower: Follower, graph: Graph, *, has_sink: bool, trained: bool
) -> list[Mask]:
    """The masks that may become one of -inf behind the score.

    Args:
        parts: of the score.
        follower: of the call.
        graph: of the score program.
        has_sink: the softmax has another logit beside the keys, of moderate size.
        trained: a gradient is taken, which is NaN for all of v where a query has no key at all; a
            kernel that skips what a mask leaves out would not see that.
    """
    masks = [m for m in parts.masks if m.condition == TRUE or is_low(m.fill)]
    complete = len(masks) == len(parts.masks)
    kept = both(*(m.condition for m in masks))
    if kept == FALSE or parts.endless:
        return []
    weakest = min((-m.fill for m in masks), default=math.inf)
    if complete and all(_survives(graph, m, lambda step: True) for m in masks):
        moderate = parts.others * _MARGIN <= weakest
        if moderate and (has_sink or keeps_a_key(kept, follower.places, reflexive(follower))):
            return masks
    infinite = {m.at: m for m in masks if m.infinite and not trained}
    return [m for m in infinite.values() if _survives(graph, m, infinite.__contains__)]


def simplified(condition: Boolean, places: Places) -> Boolean:
    """Without the parts that hold everywhere."""
    sizes = tuple(places.sizes.items())
    return both(*(c for c in sympy.And.make_args(condition) if not _is_certain(c, sizes)))


@lru_cache(maxsize=256)
def _is_certain(condition: Boolean, sizes: _Sizes) -> bool:
    return condition != FALSE and certain(normal_form(condition), {}, dict(sizes))


def keeps_a_key(
    condition: Boolean, places: Places, own: frozenset[sympy.Symbol] = frozenset()
) -> bool:
    """Whether every query certainly keeps one: its own, the first, the last, or one on an edge.

    Args:
        condition: where keys are kept.
        places: of the positions.
        own: symbols in it that are true where a query meets the key at its own position.
    """
    return _keeps_a_key(condition, tuple(places.sizes.items()), own)


@lru_cache(maxsize=256)
def _keeps_a_key(condition: Boolean, known: _Sizes, own: frozenset[sympy.Symbol]) -> bool:
    if condition in (TRUE, FALSE):
        return condition == TRUE
    condition, sizes = normal_form(condition), dict(known)
    for key in _candidates(condition, sizes[IK]):
        exists = at_least_zero(key, sizes) and at_least_zero(sizes[IK] - 1 - key, sizes)
        there: Any = condition.xreplace(dict.fromkeys(own, TRUE)) if key == IQ else condition
        if exists and certain(there, {IK: key}, sizes):
            return True
    return False


def reflexive(follower: Follower) -> frozenset[sympy.Symbol]:
    """Truth values from data that compare a query with a key by the same numbers: `x_i == x_j`."""
    found: set[sympy.Symbol] = set()
    for symbol, step in follower.reader.opaque.items():
        name = str(getattr(step.target, "__name__", step.target)).strip("_")
        if name in ("eq", "le", "ge") and len(step.args) == 2:
            a, b = step.args
            # a NaN is not even equal to itself
            whole = not any(_is_floating(n) for n in step.all_input_nodes)
            if whole and _mirrored(follower, a, b):
                found.add(symbol)
    return frozenset(found)


def _is_floating(step: Node) -> bool:
    dtype = step.meta["dtype"]
    return dtype is not None and dtype.is_floating_point


def _mirrored(follower: Follower, a: Any, b: Any) -> bool:
    """Whether two steps are the same function, one of the query and the other of the key."""
    if not isinstance(a, Node) or not isinstance(b, Node):
        return type(a) is type(b) and a == b
    a, b = (_opened(follower, step) for step in (a, b))
    operands = follower.scratch.operands
    if a in operands and b in operands:
        first, second = operands[a], operands[b]
        return first.node is second.node and _swapped(follower, first.dims) == second.dims
    if a.op == "placeholder":
        return {a.target, b.target} == {"iq", "ik"} or (a is b and a not in operands)
    same = (a.op, a.target, a.kwargs) == (b.op, b.target, b.kwargs) and len(a.args) == len(b.args)
    return same and all(_mirrored(follower, x, y) for x, y in zip(a.args, b.args, strict=True))


def _opened(follower: Follower, step: Node) -> Node:
    while step in follower.opened:
        step = follower.opened[step]
    return step


def _swapped(follower: Follower, dims: Dims) -> Dims:
    """The axes with those of queries and keys exchanged; () where they cannot be."""
    rows, keys = (leaves((follower.places.target[dim],)) for dim in (QUERY, KEY))
    if len(rows) != len(keys):
        return ()
    other = dict(zip((*rows, *keys), (*keys, *rows), strict=True))
    return tuple(tuple(other.get(axis, axis) for axis in leaves((dim,))) for dim in dims)


def _candidates(condition: Boolean, keys: Any) -> list[Any]:
    found: list[Any] = [IQ, sympy.Integer(0), keys - 1]
    for literal in sorted(condition.atoms(sympy.Ge), key=str):
        e: Any = literal.args[0]
        factor = e.coeff(IK)
        rest = sympy.expand(e - factor * IK)
        if abs(factor) == 1 and not rest.has(IK):
            found.append(sympy.expand(-rest / factor))
    return found[:_MAX_CANDIDATES]


def _survives(graph: Graph, mask: Mask, may_fill: Callable[[str], bool]) -> bool:
    """Whether what a step masks is still masked in the result, other masks being as they are."""
    node = next(n for n in graph.nodes if n.name == mask.at)
    while True:
        if len(node.users) != 1:
            return False
        (user,) = node.users
        if user.op == "output":
            return True
        if not _leaves_low(user, node, may_fill):
            return False
        node = user


def _leaves_low(user: Node, low: Node, may_fill: Callable[[str], bool]) -> bool:
    name = str(getattr(user.target, "__name__", user.target)).strip("_")
    arguments: Sequence[Any] = user.args
    if list(arguments).count(low) != 1:
        return False
    if name in ("add", "to"):
        return True
    if name == "sub":
        return arguments[0] is low
    if name in ("mul", "truediv"):
        other = next((a for a in arguments if a is not low), None)
        low_first = name == "mul" or arguments[0] is low
        return isinstance(other, (int, float)) and other > 0 and low_first
    if name in ("masked_fill", "where"):
        return low is not arguments[1 if name == "masked_fill" else 0] and may_fill(user.name)
    return name in ("maximum", "clamp_min")
