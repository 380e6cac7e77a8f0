"""Masks that are known as constant tensors only: their condition, where it is of a known kind."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from sympy.logic.boolalg import Boolean

from fuser.graph.positional import TRUE

from ..affine import Keep, Term
from ..conditions import IK, IQ
from ..evaluate import Evaluator
from ..mask import MaskFacts, MaskKind, classify, keep_of
from .places import Places


class Known:
    """Reads the constant masks of one call."""

    def __init__(self, evaluator: Evaluator, places: Places) -> None:
        self._evaluator, self._places = evaluator, places

    def mask(self, item: Term | Keep) -> tuple[Boolean, float] | None:
        """Where a mask keeps scores, and the largest number that the others get."""
        found = self._evaluator.value(item)
        sizes = [self._places.sizes[symbol] for symbol in (IQ, IK)]
        if found is None or not all(size.is_Integer for size in sizes):
            return None
        keep = found if isinstance(item, Keep) else keep_of(found)
        if keep is None:
            return None
        fill = item.fill if isinstance(item, Keep) else _highest(found[~keep])
        keep = keep.reshape((1,) * (4 - keep.ndim) + tuple(keep.shape))
        condition = _condition(classify(keep, *(int(size) for size in sizes)))
        return None if condition is None else (condition, fill)


def _highest(masked: torch.Tensor) -> float:
    return float(masked.max()) if masked.numel() else -torch.inf


def _condition(facts: MaskFacts) -> Boolean | None:
    width: Any = facts.width
    causal: Any = sympy.Ge(IQ, IK)
    found: Any = None
    if facts.kind is MaskKind.NONE:
        found = TRUE
    elif facts.kind is MaskKind.CAUSAL:
        found = causal
    elif facts.kind is MaskKind.WINDOW:
        found = sympy.And(causal, sympy.Gt(IK, IQ - width))
    elif facts.kind is MaskKind.CHUNKED:
        same: Any = sympy.Eq(sympy.floor(IQ / width), sympy.floor(IK / width))
        found = sympy.And(causal, same)
    elif facts.kind is MaskKind.PREFIX:
        found = sympy.Or(causal, sympy.Lt(IK, width))
    return found
