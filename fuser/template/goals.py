"""What remains to be shown: `Goal`, the ways to show it, `Branch`, and why it cannot be, `Fail`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ..graph.ops import is_tensor, value
from ..graph.view import GraphView
from . import form
from .values import Value


@dataclass(frozen=True)
class Goal:
    """`template` must stand for `graph`, an argument of `reader`."""

    template: Any
    graph: Any
    reader: Node
    what: str = ""


@dataclass(frozen=True)
class Branch:
    """One way: what remains to be shown, what is bound, and which nodes are covered."""

    goals: Sequence[Goal]
    bind: tuple[Node, Value] | None = None
    region: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Fail:
    reason: str
    node: Node


def argument_goals(
    template: GraphView, view: GraphView, p: Node, g: Node, swap: bool = False
) -> list[Goal] | Fail:
    """Goals for the arguments of two operators, by name.

    Args:
        swap: exchange the operands of the graph's.
    """
    wanted, found = form.arguments(template, p), form.arguments(view, g)
    if swap:
        found = {**found, "input": found["other"], "other": found["input"]}
    head, what = form.head(view, g), form.label(view, g)
    source: Any = found.get("input", next(iter(found.get("tensors", ())), None))
    rank = value(source).ndim if is_tensor(source) else 0
    goals: list[Goal] = []
    for key in dict.fromkeys([*wanted, *found]):
        a = wanted.get(key, form.MISSING)
        b = found.get(key, form.MISSING)
        a = form.default(template, p, key) if a is form.MISSING else a
        b = form.default(view, g, key) if b is form.MISSING else b
        if a is form.MISSING or b is form.MISSING:
            return Fail(f"{what} is called with {'no ' if b is form.MISSING else ''}`{key}`", g)
        if key == "index" and head == "getitem" and rank:
            a, b = form.index(a, rank), form.index(b, rank)
        elif not isinstance(a, Node):
            a, b = form.dimension(head, key, a, rank), form.dimension(head, key, b, rank)
        goals.append(Goal(a, b, g, "" if is_tensor(a) or is_tensor(b) else f"`{key}` of {what}"))
    return goals
