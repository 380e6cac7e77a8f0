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

from fuser.graph.positional import FALSE, TRUE, at_least_zero, both

from ..conditions import IK, IQ, certain, normal_form
from .masks import Mask, Parts, is_low
from .places import Places

_MARGIN = 8
"""A mask's number is at least so many times larger than everything beside it."""
_MAX_CANDIDATES = 16
_Sizes: TypeAlias = "tuple[tuple[sympy.Symbol, sympy.Expr], ...]"


def movable(
    parts: Parts, places: Places, graph: Graph, *, has_sink: bool, trained: bool
) -> list[Mask]:
    """The masks that may become one of -inf behind the score.

    Args:
        parts: of the score.
        places: of the positions.
        graph: of the score program.
        has_sink: the softmax has another logit beside the keys, of moderate size.
        trained: a gradient is taken, which is NaN for all of v where a query has no key at all; a
            kernel that skips what a mask leaves out would not see that.
    """
    masks = [m for m in parts.masks if m.condition == TRUE or is_low(m.fill)]
    complete = len(masks) == len(parts.masks)
    kept = both(*(m.condition for m in masks))
    if kept == FALSE:
        return []
    weakest = min((-m.fill for m in masks), default=math.inf)
    if complete and all(_survives(graph, m, lambda step: True) for m in masks):
        moderate = parts.others * _MARGIN <= weakest
        if moderate and (has_sink or keeps_a_key(kept, places)):
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


def keeps_a_key(condition: Boolean, places: Places) -> bool:
    """Whether every query certainly keeps one: its own, the first, the last, or one on an edge."""
    return _keeps_a_key(condition, tuple(places.sizes.items()))


@lru_cache(maxsize=256)
def _keeps_a_key(condition: Boolean, known: _Sizes) -> bool:
    if condition in (TRUE, FALSE):
        return condition == TRUE
    condition, sizes = normal_form(condition), dict(known)
    for key in _candidates(condition, sizes[IK]):
        exists = at_least_zero(key, sizes) and at_least_zero(sizes[IK] - 1 - key, sizes)
        if exists and certain(condition, {IK: key}, sizes):
            return True
    return False


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
        return isinstance(other, (int, float)) and other > 0 and arguments[-1] is not low
    if name in ("masked_fill", "where"):
        return low is not arguments[1 if name == "masked_fill" else 0] and may_fill(user.name)
    return name in ("maximum", "clamp_min")
