"""Which parts of a score are masks, and which of these may set it to -inf in place of a number.

A mask of -inf may move behind everything that leaves -inf as it is. A mask of a finite number may
become one of -inf where every query certainly keeps a key of moderate score: beside that, the
masked keys have no weight at all. Elsewhere a query without keys would spread over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch.fx import Node

from fuser.graph.positional import FALSE, TRUE, Levels, at_least_zero, both, negated
from fuser.graph.program import rounded

from ..affine import HUGE, Affine, Free, Keep, Term
from ..conditions import IK, IQ, certain, normal_form
from .follow import Follower
from .moderate import Magnitudes
from .places import Places

_LOWEST_HALF = torch.finfo(torch.float16).min
_MARGIN = 8
"""A mask's number is at least so many times larger than everything beside it."""
_MAX_CANDIDATES = 16
_Sizes: TypeAlias = "tuple[tuple[sympy.Symbol, sympy.Expr], ...]"


@dataclass(frozen=True)
class Mask:
    """Positions where `condition` is false are masked.

    Attributes:
        at: name of the program's step that masks.
        fill: the largest number to which, or by which, they are lowered.
        added: the mask is added to the scores, which still get a gradient where they are masked.
        term: the free node of the program that holds the mask and more.
        rest: what is left of that node without the mask.
    """

    at: str
    condition: Boolean
    fill: float
    added: bool = False
    term: Node | None = None
    rest: Node | None = None

    @property
    def infinite(self) -> bool:
        return self.fill == -math.inf


@dataclass
class Parts:
    """A score's parts beside the products of q and k: masks, and bounds of everything else."""

    masks: list[Mask]
    others: float


class Finder:
    """Finds the masks of one score program."""

    def __init__(
        self,
        follower: Follower,
        magnitudes: Magnitudes,
        copy: Callable[[Free], Any],
        constant: Callable[[Term | Keep], tuple[Boolean, float] | None],
    ) -> None:
        """
        Args:
            follower: of the call.
            magnitudes: bounds of steps.
            copy: the step for a free node of the program.
            constant: condition and fill of what is known as a tensor only.
        """
        self.follower, self.magnitudes = follower, magnitudes
        self._copy, self._constant = copy, constant

    def parts(self, form: Affine) -> Parts:
        found = Parts([], 0.0)
        for item in (*form.terms, *form.keeps):
            mask = self._mask(item)
            if mask is None or mask.condition.atoms(sympy.Dummy):
                constant = self._constant(item)
                added = isinstance(item, Term)
                mask = mask if constant is None else Mask(item.at, *constant, added)
            if mask is not None and form.floor != -math.inf:
                mask = replace(mask, fill=max(mask.fill, form.floor))
            if mask is None:
                found.others += self._size(item, None)
            else:
                found.masks.append(mask)
                found.others += 0.0 if mask.rest is None else self._size(item, mask.rest)
        return found

    def _mask(self, item: Term | Keep) -> Mask | None:
        try:
            if isinstance(item, Keep):
                step = self._copy(item.condition)
                condition = self.follower.reader.condition(step)
                return Mask(item.at, negated(condition) if item.negated else condition, item.fill)
            found = self.split(self._copy(item.value))
            if found is None or (found.rest is not None and not _only_added(item)):
                return None
            return _scaled(replace(found, at=item.at, added=True), item)
        except Exception:  # what cannot be followed is no mask
            return None

    def split(self, step: Any) -> Mask | None:
        """A bias as a mask, made of zeros and huge negative numbers, and the rest of it."""
        if not isinstance(step, Node) or not step.meta["dtype"].is_floating_point:
            return None
        if step in self.follower.opened:
            return self.split(self.follower.opened[step])
        found = self.follower.reader.value(step)
        if isinstance(found, Levels):
            return _levels(found)
        for rest, condition, fill in self._peeled(step):
            further = self.split(rest)
            if further is None:
                return Mask("", condition, fill, rest=rest)
            both_of = both(condition, further.condition)
            return Mask("", both_of, max(fill, further.fill), rest=further.rest)
        return None

    def _peeled(self, step: Node) -> Iterator[tuple[Node, Boolean, float]]:
        """The outermost mask in a bias: (what is masked, where it is kept, to what it is set)."""
        scratch, arguments = self.follower.scratch, list[Any](step.args)
        name = str(getattr(step.target, "__name__", step.target)).strip("_")
        dtype = step.meta["dtype"]
        if step.target is rounded or step.target == "to":
            found = self.split(arguments[0])
            if found is not None and found.rest is not None:
                fill = torch.tensor(found.fill).to(dtype).item()
                yield scratch.cast(found.rest, dtype), found.condition, fill
        elif name == "add" and not step.kwargs:
            for masked, rest in (arguments, arguments[::-1]):
                found = self.split(masked)
                if found is None or not isinstance(rest, Node):
                    continue
                if found.rest is not None:
                    rest = scratch.call(torch.add, rest, found.rest)
                yield scratch.cast(rest, dtype), found.condition, found.fill
        elif name in ("masked_fill", "where"):
            yield from self._filled(name, arguments, dtype)

    def _filled(
        self, name: str, arguments: list[Any], dtype: torch.dtype
    ) -> Iterator[tuple[Node, Boolean, float]]:
        if name == "masked_fill":
            arguments = [arguments[1], arguments[2], arguments[0]]
        chosen, a, b = arguments
        condition = self.follower.reader.condition(chosen)
        for fill, rest, kept in ((a, b, negated(condition)), (b, a, condition)):
            number = self._number(fill, dtype)
            if number is not None and isinstance(rest, Node) and _is_low(number):
                yield self.follower.scratch.cast(rest, dtype), kept, number

    def _number(self, fill: Any, dtype: torch.dtype) -> float | None:
        if isinstance(fill, Node):
            found = self.follower.reader.value(fill)
            if not isinstance(found, Levels) or len(found.cases) != 1:
                return None
            fill = found.cases[0][1].item()
        return torch.tensor(float(fill)).to(dtype).item()

    def _size(self, item: Term | Keep, rest: Node | None) -> float:
        if isinstance(item, Keep):
            return math.inf
        size = self.magnitudes.of(self._copy(item.value) if rest is None else rest)
        for how, operand in item.steps:
            if how == "to":
                continue
            factor = self.magnitudes.of(self._copy(operand))
            if how != "mul" and (isinstance(operand, Node) or not factor):
                return math.inf
            size = size * factor if how == "mul" else size / factor
        return size


def movable(
    parts: Parts, places: Places, graph: Any, *, has_sink: bool, trained: bool
) -> list[Mask]:
    """The masks that may become one of -inf behind the score.

    Args:
        parts: of the score.
        places: of the positions.
        graph: of the score program.
        has_sink: the softmax has another logit beside the keys, of moderate size.
        trained: a gradient is taken, which is NaN where -inf was added to all keys of a query.
    """
    masks = [m for m in parts.masks if m.condition == TRUE or _is_low(m.fill)]
    complete = len(masks) == len(parts.masks)
    kept = both(*(m.condition for m in masks))
    if kept == FALSE:
        return []
    weakest = min((-m.fill for m in masks), default=math.inf)
    if complete and all(_survives(graph, m, lambda step: True) for m in masks):
        moderate = parts.others * _MARGIN <= weakest
        if moderate and (has_sink or keeps_a_key(kept, places)):
            return masks
    infinite = {m.at: m for m in masks if m.infinite and not (trained and m.added)}
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


def _survives(graph: Any, mask: Mask, may_fill: Callable[[str], bool]) -> bool:
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


def _only_added(item: Term) -> bool:
    """Whether a bias is read by the step that adds it alone, and as it is."""
    value = item.value
    return isinstance(value, Node) and [u.name for u in value.users] == [item.at]


def _scaled(mask: Mask, item: Term) -> Mask | None:
    """With what is done to the sum later."""
    fill: Any = torch.tensor(mask.fill)
    for how, operand in item.steps:
        if how == "to":
            fill = fill.to(operand)
        elif isinstance(operand, (int, float)) and operand > 0:
            fill = fill * operand if how == "mul" else fill / operand
        else:
            return None
    term = item.value if mask.rest is not None and isinstance(item.value, Node) else None
    return replace(mask, fill=float(fill), term=term)


def _levels(found: Levels) -> Mask | None:
    kept: list[Boolean] = []
    lowest = -math.inf
    for condition, level in found.cases:
        number = float(level.item())
        if number == 0:
            kept.append(condition)
        elif number <= -HUGE:
            lowest = max(lowest, number)
        else:
            return None
    everywhere = len(kept) == len(found.cases)
    return Mask("", TRUE if everywhere else sympy.Or(*kept) if kept else FALSE, lowest)


def _is_low(fill: float) -> bool:
    return fill <= _LOWEST_HALF / 2
