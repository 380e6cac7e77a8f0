"""Which parts of a score are masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.positional import FALSE, TRUE, Levels, both, negated
from fuser.graph.program import rounded
from fuser.swallowed import swallow
from fuser.torch_private import eager_world

from ..affine import HUGE, Affine, Free, Keep, Term
from .follow import Follower
from .moderate import Magnitudes

_Steps: TypeAlias = "tuple[tuple[str, Any], ...]"
_LOWEST_HALF = torch.finfo(torch.float16).min


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
    """A score's parts beside the products of q and k.

    Attributes:
        masks: those that are masks.
        others: a bound of everything else.
        endless: something else is infinite by what the program says, not only by its data: over a
            mask of -inf it would be NaN.
    """

    masks: list[Mask]
    others: float
    endless: bool = False


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
            rest = None if mask is None else mask.rest
            if mask is not None:
                found.masks.append(mask)
            if mask is None or rest is not None:
                found.others += self._size(item, rest)
                found.endless |= isinstance(item, Term) and self._is_endless(item, rest)
        return found

    def _is_endless(self, item: Term, rest: Node | None) -> bool:
        pending = [self._copy(item.value) if rest is None else rest]
        pending += [self._copy(operand) for how, operand in item.steps if how != "to"]
        seen: set[Node] = set()
        while pending:
            step = pending.pop()
            if isinstance(step, (int, float)) and math.isinf(step):
                return True
            if not isinstance(step, Node) or step in seen:
                continue
            seen.add(step)
            if self.magnitudes.is_endless(step):
                return True
            pending += [*step.args, *step.kwargs.values()]
            if step in self.follower.opened:
                pending.append(self.follower.opened[step])
        return False

    def _mask(self, item: Term | Keep) -> Mask | None:
        try:
            if isinstance(item, Keep):
                step = self._copy(item.condition)
                condition = self.follower.reader.condition(step)
                return Mask(item.at, negated(condition) if item.negated else condition, item.fill)
            step = self._copy(item.value)
            known = self.follower.reader.value(step) if isinstance(step, Node) else None
            if isinstance(known, Levels):
                found = _levels(known, item.steps)
                return None if found is None else replace(found, at=item.at, added=True)
            found = self.split(step)
            if found is None or not _only_added(item):
                return None
            fill = _stepped(found.fill, item.steps)
            return replace(found, at=item.at, fill=fill, added=True, term=item.value)
        except Exception as error:  # what cannot be followed is no mask
            swallow(error)
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
                fill = _stepped(found.fill, (("to", dtype),))
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
            if number is not None and isinstance(rest, Node) and is_low(number):
                yield self.follower.scratch.cast(rest, dtype), kept, number

    def _number(self, fill: Any, dtype: torch.dtype) -> float | None:
        if isinstance(fill, Node):
            found = self.follower.reader.value(fill)
            if not isinstance(found, Levels) or len(found.cases) != 1:
                return None
            fill = found.cases[0][1].item()
        return _stepped(float(fill), (("to", dtype),))

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


def _only_added(item: Term) -> bool:
    """Whether a bias is read by the step that adds it alone, and as it is."""
    value = item.value
    return isinstance(value, Node) and [u.name for u in value.users] == [item.at]


def _stepped(number: float, steps: _Steps) -> float:
    """A number after what is done to the sum that it is a part of.

    Raises:
        Unproven: it is multiplied with what is no number.
    """
    with eager_world():
        found = torch.tensor(number, dtype=torch.float32)
        for how, operand in steps:
            if how == "to":
                found = found.to(operand)
            elif isinstance(operand, (int, float)):
                found = found * operand if how == "mul" else found / operand
            else:
                raise Unproven("a mask that is scaled by what is no number")
        return float(found)


def _levels(found: Levels, steps: _Steps = ()) -> Mask | None:
    """A bias of zeros and huge negative numbers."""
    kept: list[Boolean] = []
    lowest = -math.inf
    for condition, level in found.cases:
        number = _stepped(float(level), steps)
        if number == 0:
            kept.append(condition)
        elif number <= -HUGE:
            lowest = max(lowest, number)
        else:
            return None
    everywhere = len(kept) == len(found.cases)
    return Mask("", TRUE if everywhere else sympy.Or(*kept) if kept else FALSE, lowest)


def is_low(fill: float) -> bool:
    """Whether a score set to, or lowered by, so much has no weight beside a moderate one."""
    return fill <= _LOWEST_HALF / 2
