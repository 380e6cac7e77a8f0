"""Free parts of a program (those without scores): evaluate them, or emit them as graph nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from fuser.graph.arrange import Permute, Reshape, Select, steps
from fuser.graph.axes import leaves
from fuser.graph.fold import Folder
from fuser.pattern import Call, Operand
from fuser.swallowed import swallow
from fuser.torch_private import eager_world

from .affine import Free, Keep, Term


def captured_by(call: Call, node: Free) -> list[Operand]:
    """The captured operands that a free node of a program reads."""
    if not isinstance(node, Node):
        return []
    found, pending, seen = [], [node], set[Node]()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "placeholder":
            found.append(call.operands[str(current.target)])
        pending.extend(current.all_input_nodes)
    return found


def parts(item: Term | Keep) -> list[Free]:
    """Every free node or number of a term or mask."""
    if isinstance(item, Keep):
        return [item.condition]
    return [item.value, *(operand for _, operand in item.steps)]


def varies_over(call: Call, node: Free, dim: int) -> bool:
    """Whether a free node differs along a canonical dimension (0 B, 1 H, 2 Sq, 3 Sk)."""
    return any(
        set(leaves(o.dims)) & set(leaves((o.target[dim],)))
        for o in captured_by(call, node)
        if o.target
    )


class Evaluator:
    """Values that are known while compiling, in canonical arrangement."""

    def __init__(self, call: Call, folder: Folder) -> None:
        self.call, self.folder = call, folder
        self._values: dict[Node, Any] = {}

    def number(self, node: Node) -> float | None:
        """The value of a free node that is one number, or None."""
        found = self._value(node)
        return float(found) if isinstance(found, Tensor) and found.numel() == 1 else None

    def value(self, item: Term | Keep) -> Tensor | None:
        """A term as an additive bias, a mask as kept positions; None where unknown."""
        try:
            with eager_world():
                if isinstance(item, Keep):
                    mask = self._tensor(item.condition)
                    return None if mask is None else mask.bool() ^ item.negated
                return _apply(self._tensor(item.value), item, self._tensor)
        except Exception as error:  # what cannot be computed here is merely unknown
            swallow(error)
            return None

    def _tensor(self, node: Free) -> Tensor | None:
        return self._value(node) if isinstance(node, Node) else torch.tensor(node)

    def _value(self, node: Node) -> Any:
        if node not in self._values:
            self._values[node] = self._compute(node)
        return self._values[node]

    def _compute(self, node: Node) -> Any:
        if node.op == "placeholder":
            operand = self.call.operands.get(str(node.target))
            return None if operand is None else self.operand(operand)
        inputs = {n: self._value(n) for n in node.all_input_nodes}
        if any(found is None for found in inputs.values()):
            return None
        args, kwargs = map_arg(node.args, inputs.get), map_arg(node.kwargs, inputs.get)
        with eager_world():
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def operand(self, operand: Operand) -> Tensor | None:
        """A captured tensor, where it is known."""
        found = self.folder.tensor(operand.node)
        if found is None or not operand.target:
            return found
        for step in steps(operand.dims, operand.target, fixed=dict(operand.fixed)):
            if isinstance(step, Permute):
                found = found.permute(step.order)
            elif isinstance(step, Select):
                found = found.select(step.dim, step.index)
            else:
                shape = [int(s) for s in step.shape]
                found = found.reshape(shape) if isinstance(step, Reshape) else found.expand(shape)
        return found


def _apply(
    start: Tensor | None, term: Term, look: Callable[[Free], Tensor | None]
) -> Tensor | None:
    if start is None:
        return None
    for how, operand in term.steps:
        if how == "to":
            start = start.to(operand)
            continue
        other = look(operand)
        if other is None:
            return None
        start = start * other if how == "mul" else start / other
    return start
