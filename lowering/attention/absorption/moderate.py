"""How large a part of a score can be: what is no mask must not be as low as one.

Scores are taken to be of moderate size, as everywhere in this package. A captured tensor whose
values are not known may hold a mask of its own, parameters included.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fuser.graph.fold import Folder
from fuser.graph.ops import is_tensor, value
from fuser.graph.program import POSITIONS, gather, rounded

from .follow import Follower

_LARGEST_POSITION = 2.0**31


class Magnitudes:
    """Bounds of the absolute values of steps; infinite where there is none."""

    def __init__(self, follower: Follower, folder: Folder) -> None:
        self.follower, self.folder = follower, folder
        self._known: dict[Node, float] = {}

    def of(self, step: Any) -> float:
        if isinstance(step, (bool, int, float)):
            return abs(float(step))
        if step not in self._known:
            self._known[step] = self._compute(step)
        return self._known[step]

    def is_endless(self, step: Node) -> bool:
        """Whether a captured tensor is known to hold an infinite number."""
        operand = self.follower.scratch.operands.get(step)
        found = None if operand is None else self.folder.tensor(operand.node)
        return isinstance(found, Tensor) and found.is_floating_point() and bool(found.isinf().any())

    def _compute(self, step: Node) -> float:
        scratch = self.follower.scratch
        if step in scratch.operands:
            return self._captured(scratch.operands[step].node)
        if step.op == "placeholder":
            return self._position(str(step.target))
        arguments: tuple[Any, ...] = step.args
        if step.target is gather:
            return self._captured(scratch.tables[arguments[0]])
        if step.target in (torch.full_like, torch.scalar_tensor):
            return self.of(arguments[-1])
        if step.target is rounded or step.target == "to":
            return self.of(arguments[0])
        if step.kwargs:
            return math.inf
        name = str(getattr(step.target, "__name__", step.target)).strip("_")
        if name == "truediv" and isinstance(arguments[1], (int, float)) and arguments[1]:
            return self.of(arguments[0]) / abs(arguments[1])
        rule = _RULES.get(name)
        return math.inf if rule is None else rule([self.of(a) for a in arguments])

    def _position(self, name: str) -> float:
        if name in POSITIONS:
            dim = self.follower.places.target[POSITIONS.index(name)]
            size: Any = math.prod(axis.size for axis in dim)
            return float(size) if isinstance(size, int) else _LARGEST_POSITION
        return _LARGEST_POSITION if name[0] == "n" else math.inf

    def _captured(self, node: Node) -> float:
        if not is_tensor(node):
            return math.inf
        if value(node).dtype is torch.bool:
            return 1.0
        found = self.folder.tensor(node)
        if isinstance(found, Tensor):
            return float(found.abs().max()) if found.numel() else 0.0
        return math.inf


_RULES: dict[str, Any] = {
    "add": sum, "sub": sum, "mul": math.prod, "neg": max, "abs": max, "masked_fill": max,
    "where": lambda sizes: max(sizes[1:]), "maximum": max, "minimum": max,
    "tanh": lambda sizes: 1.0, "sigmoid": lambda sizes: 1.0, "sin": lambda sizes: 1.0,
    "cos": lambda sizes: 1.0, "mod": lambda sizes: sizes[1], "floordiv": lambda sizes: sizes[0],
    "sqrt": lambda sizes: max(1.0, sizes[0]), "relu": max,
}  # fmt: skip
