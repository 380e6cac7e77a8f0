"""A planned rewrite as two small graphs that run by themselves, and the conditions for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..graph.fold import Folder
from ..graph.modes import modes_at
from ..graph.ops import value
from ..graph.view import GraphView
from ..inductor_private import inductor
from ..plan import Planned
from ..rehearsal import Rehearsal
from ..standing import Unrehearsable
from ..torch_private import lookup_backend
from .compare import Conditions

EAGER = "eager"
"""The inner backend that compiles nothing."""


@dataclass(frozen=True)
class Trial:
    """A region that can be run by itself."""

    rehearsal: Rehearsal
    original: GraphModule
    replacement: GraphModule
    conditions: Conditions

    def operands(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Values of the region's inputs, which want gradients where those do."""
        training = self.conditions.training
        return [
            x.detach().requires_grad_(training and value(node).requires_grad)
            for x, node in zip(values, self.rehearsal.inputs, strict=True)
        ]

    def compiled(
        self, module: GraphModule, operands: Sequence[Tensor], inner: str
    ) -> Callable[..., Any]:
        """The replacement or the original, compiled by an inner backend."""
        if inner == EAGER:
            return module
        backend = inductor(None, {}) if inner == "inductor" else lookup_backend(inner)
        return self.rehearsal.compiled(module, operands, backend)


def prepare(view: GraphView, item: Planned, folder: Folder) -> Trial:
    """
    Raises:
        Unrehearsable: it cannot be run by itself, or two runs cannot be compared.
        Exception: whatever the replacement raises.
    """
    match = item.match
    if match.random:
        raise Unrehearsable("it draws random numbers")
    with modes_at(view, match.anchor):
        training = torch.is_grad_enabled() and any(value(o).requires_grad for o in match.outputs)
        rehearsal = Rehearsal.of(view, match, folder, training=training, whole=True)
        original, replacement = rehearsal.original(), rehearsal.replaced(item.emissions)
    inside = {view.order[node] for node in rehearsal.inside}
    conditions = Conditions(
        rehearsal.device,
        training,
        rehearsal.autocast,
        any(position in inside for position, _ in view.mutations),
        match.drops_nonfinite,
        match.unordered,
        _unit(rehearsal),
    )
    return Trial(rehearsal, original, replacement, conditions)


def _unit(rehearsal: Rehearsal) -> float:
    """The coarsest rounding among the dtypes of a region."""
    examples = [value(node) for node in (*rehearsal.inputs, *rehearsal.inside)]
    dtypes = {x.dtype for x in examples if isinstance(x, Tensor) and x.is_floating_point()}
    dtypes |= {rehearsal.autocast} if rehearsal.autocast else set()
    fine = [torch.finfo(dtype).eps for dtype in dtypes if dtype.itemsize > 1]
    return max(fine, default=torch.finfo(torch.float32).eps)
