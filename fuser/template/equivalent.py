"""Other operators that compute the same: operands swapped, the inverse operator, squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ..graph.ops import is_tensor, value
from ..graph.view import GraphView
from . import form
from .equal import equal, is_number
from .goals import Branch, Fail, Goal, argument_goals
from .rounding import exacting, negative, reciprocal


def equivalents(template: GraphView, view: GraphView, p: Node, g: Node) -> list[Branch | Fail]:
    """All ways to read the operator `g` of a graph as another one, the template's `p`."""
    rules = (_mirrored, _inverse, _squared, _subtracted)
    found = [rule(template, view, p, g) for rule in rules]
    return [branch for branch in found if branch is not None]


def _mirrored(template: GraphView, view: GraphView, p: Node, g: Node) -> Branch | None:
    """op(a, b) read as op'(b, a)."""
    if form.MIRRORED.get(form.head(view, g)) != form.head(template, p):
        return None
    found = form.arguments(view, g)
    if found.get("alpha", 1) != 1 or not {"input", "other"} <= set(found):
        return None
    goals = argument_goals(template, view, p, g, swap=True)
    if isinstance(goals, Fail) or not _plausible(template, view, goals):
        return None
    return Branch(goals, (p, g), (g,))


def _plausible(template: GraphView, view: GraphView, goals: Sequence[Goal]) -> bool:
    """Whether the operands could be what is wanted: spares the search most dead ends."""
    for goal in goals:
        p, g = goal.template, goal.graph
        if not isinstance(p, Node):
            if is_tensor(g):
                return False
        elif p.op in ("call_function", "call_method") and is_tensor(p):
            if not is_tensor(g):
                return False
            optional = form.head(template, p) in (form.IDENTITY, form.CAST)
            if optional or form.is_noop(view, g) or form.head(view, g) in form.heads(template, p):
                continue
            return False
        elif p.op == "placeholder" and is_tensor(p) != is_tensor(g):
            return False
    return True


def _inverse(template: GraphView, view: GraphView, p: Node, g: Node) -> Branch | Fail | None:
    """x * c read as x / (1 / c), x + c as x - (-c), for a number c of the graph."""
    head = form.head(view, g)
    if form.DUAL.get(head) != form.head(template, p):
        return None
    wanted, found = form.arguments(template, p), form.arguments(view, g)
    a, b = found.get("input"), found.get("other")
    if head in ("mul", "add") and is_number(a):
        a, b = b, a
    number: Any = b
    if not is_number(number) or set(found) != {"input", "other"} or set(wanted) != set(found):
        return None
    x, y = wanted["input"], wanted["other"]
    if head in ("div", "sub") and not is_tensor(x):
        x, y = y, x
    if is_tensor(y) or not isinstance(a, Node) or not is_tensor(a):
        return None
    if head in ("add", "sub"):
        other = negative(number, value(a).dtype)
    else:
        exact = p in exacting(template)
        other = reciprocal(number, value(g).dtype, exact=exact)
        if is_number(y) and other is not None and equal(y, other, loose=not exact):
            other = y  # 1 / (1 / 49) is not 49
    what = form.label(view, g)
    if other is None:
        return Fail(f"{what} with {number!r} is not for certain a {form.label(template, p)}", g)
    return Branch([Goal(x, a, g), Goal(y, other, g, f"the number in {what}")], (p, g), (g,))


def _squared(template: GraphView, view: GraphView, p: Node, g: Node) -> Branch | None:
    """x * x read as x ** 2, and the other way round."""
    if form.SQUARED.get(form.head(view, g)) != form.head(template, p):
        return None
    wanted, found = form.arguments(template, p), form.arguments(view, g)
    if set(wanted) != {"input", "other"} or set(found) != set(wanted):
        return None
    product, power = (found, wanted) if form.head(view, g) == "mul" else (wanted, found)
    if product["input"] is not product["other"] or not is_tensor(power["input"]):
        return None
    goals = [Goal(wanted["input"], found["input"], g)]
    if power is wanted:
        goals.append(Goal(power["other"], 2, g, "the exponent"))
    elif not is_number(power["other"]) or power["other"] != 2:
        return None
    return Branch(goals, (p, g), (g,))


def _subtracted(template: GraphView, view: GraphView, p: Node, g: Node) -> Branch | None:
    """x + (-y) read as x - y, and the other way round."""
    names = form.head(template, p), form.head(view, g)
    wanted, found = form.arguments(template, p), form.arguments(view, g)
    if any(set(arguments) != {"input", "other"} for arguments in (wanted, found)):
        return None
    if names == ("sub", "add"):
        for y, x in (("other", "input"), ("input", "other")):
            negated = _negated(view, found[y])
            if negated is not None and _subtracts(negated, g) and _subtracts(found[x], g):
                goals = [Goal(wanted["input"], found[x], g), Goal(wanted["other"], negated, g)]
                return Branch(goals, (p, g), (found[y], g))
    if names == ("add", "sub") and _subtracts(found["other"], g):
        for y, x in (("other", "input"), ("input", "other")):
            negated = _negated(template, wanted[y])
            if negated is not None:
                goals = [Goal(wanted[x], found["input"], g), Goal(negated, found["other"], g)]
                return Branch(goals, (p, g), (g,))
    return None


def _negated(view: GraphView, node: Any) -> Node | None:
    """y where a node is -y."""
    if not isinstance(node, Node) or view.op(node).name != "neg":
        return None
    return view.op(node).args["input"]


def _subtracts(operand: Any, g: Node) -> bool:
    """Whether an operand has the type of the result, in which its negative is exact."""
    if not is_tensor(operand) or value(operand).dtype is torch.bool:
        return is_number(operand)
    return value(operand).dtype == value(g).dtype
