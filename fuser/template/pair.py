"""Open one operator of a template at one value of a graph: the ways in which they can be equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ..graph.ops import is_tensor, value
from ..graph.view import GraphView
from . import form
from .equal import is_number
from .values import Permuted, Product, Value, opened, permuted


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


def branches(
    template: GraphView, view: GraphView, p: Node, g: Any, reader: Node
) -> list[Branch] | Fail:
    """All ways to read the graph value `g` as the template's operation `p`, the likeliest first."""
    head = form.head(template, p)
    optional: list[Branch] = []
    if head in (form.IDENTITY, form.CAST):
        source: Any = template.op(p).args["input"]
        optional = [Branch([Goal(source, g, reader), *_dtype_goals(template, p, g)], (p, g))]
    if isinstance(g, Product):
        return optional or _product(template, p, g)
    if isinstance(g, Permuted):
        return optional or _permuted(template, view, p, g, reader)
    found: list[Branch] = []
    failed = Fail(f"expected {form.label(template, p)}, found {form.label(view, g)}", g)
    if head == form.head(view, g):
        direct = _pair(template, view, p, g)
        if isinstance(direct, Fail):
            failed = direct
        else:
            found.append(Branch(direct, (p, g), (g,)))
    if g.op in ("call_function", "call_method"):
        found += _other_spellings(template, view, p, g)
    return [*found, *optional] or failed


def _other_spellings(template: GraphView, view: GraphView, p: Node, g: Node) -> list[Branch]:
    found: list[Branch] = []
    for goals in (_mirrored(template, view, p, g), _dual(template, view, p, g)):
        if goals is not None:
            found.append(Branch(goals, (p, g), (g,)))
    inside = opened(view.op(g), g)
    if inside is not None and form.head(template, p) in ("matmul", form.PERMUTE):
        ways = branches(template, view, p, inside, g)
        if not isinstance(ways, Fail):
            found += [_holding(way, p, g) for way in ways]
    if form.is_noop(view, g):
        source = view.op(g).args["input"]
        found.append(Branch([Goal(p, source, g)], None, (g,)))
    return found


def _holding(branch: Branch, p: Node, g: Node) -> Branch:
    """The value of `p` is that of the whole node; a part of it belongs to no node."""
    return Branch(branch.goals, (p, g), (*branch.region, g))


def _product(template: GraphView, p: Node, g: Product) -> list[Branch] | Fail:
    if form.head(template, p) != "matmul":
        return Fail(f"expected {form.label(template, p)}, found a product", g.node)
    args = form.arguments(template, p)
    goals = [Goal(args["input"], g.a, g.node), Goal(args["other"], g.b, g.node)]
    return [Branch(goals, (p, g), (g.node,))]


def _permuted(
    template: GraphView, view: GraphView, p: Node, g: Permuted, reader: Node
) -> list[Branch] | Fail:
    failed = Fail(f"expected {form.label(template, p)}, found a permutation", reader)
    inner = g.value
    if form.head(template, p) == form.PERMUTE:
        wanted = form.order(template, p, len(g.order))
        if wanted is not None and len(wanted) == len(g.order):
            source: Any = template.op(p).args["input"]
            # inner.permute(g.order) is inner.permute(rest).permute(wanted)
            rest = tuple(g.order[wanted.index(i)] for i in range(len(wanted)))
            return [Branch([Goal(source, permuted(inner, rest), reader)], (p, g))]
    if isinstance(inner, Node) and form.head(view, inner) == form.PERMUTE:
        order = form.order(view, inner, len(g.order))
        if order is not None:
            source = permuted(permuted(view.op(inner).args["input"], order), g.order)
            return [Branch([Goal(p, source, inner)], None, (inner,))]
    return failed


def _pair(template: GraphView, view: GraphView, p: Node, g: Node) -> list[Goal] | Fail:
    """Goals for the arguments of two operators with one head."""
    head = form.head(view, g)
    source: Any = template.op(p).args.get("input")
    graph_source: Any = view.op(g).args.get("input")
    pass_on = Goal(source, graph_source, g)
    match head:
        case form.PERMUTE:
            return _permutations(template, view, p, g, pass_on)
        case form.RESHAPE | form.EXPAND:
            return [pass_on, *_size_goals(template, view, p, g)]
        case form.CAST:
            return [pass_on, *_dtype_goals(template, p, g)]
        case form.IDENTITY:
            return [pass_on]
        case _:
            return _argument_goals(template, view, p, g)


def _permutations(
    template: GraphView, view: GraphView, p: Node, g: Node, pass_on: Goal
) -> list[Goal] | Fail:
    rank = value(g).ndim
    try:
        wanted, found = form.order(template, p, rank), form.order(view, g, rank)
    except ZeroDivisionError:
        wanted, found = None, None
    if wanted is None:
        if template.op(p).name != view.op(g).name:
            return Fail("a permutation of other dimensions", g)
        return _argument_goals(template, view, p, g)
    if wanted != found:
        return Fail(f"the dimensions are permuted as {found} instead of {wanted}", g)
    return [pass_on]


def _size_goals(template: GraphView, view: GraphView, p: Node, g: Node) -> list[Goal]:
    """Sizes that the template names; the shape as a whole is checked when all is bound."""
    op, graph_op = template.op(p), view.op(g)
    key = {"reshape": "shape", "expand": "sizes"}.get(op.name, "")
    sizes: Any = op.args.get(key)
    if not isinstance(sizes, (tuple, list)) or len(sizes) != value(g).ndim:
        return []
    given: Any = graph_op.args.get(key) if graph_op.name == op.name else None
    actual = list(value(g).shape)
    if isinstance(given, (tuple, list)) and len(given) == len(actual):
        actual = [a if _is_open(s) else s for s, a in zip(given, actual, strict=True)]
    what = f"a size of {form.label(view, g)}"
    pairs = zip(sizes, actual, strict=True)
    return [Goal(s, a, g, what) for s, a in pairs if not _is_open(s)]


def _is_open(size: Any) -> bool:
    return isinstance(size, int) and size == -1


def _dtype_goals(template: GraphView, p: Node, g: Any) -> list[Goal]:
    """Scalar arguments of a cast are bound to what it gives."""
    args = {k: v for k, v in template.op(p).args.items() if k != "input"}
    named = [a for a in args.values() if isinstance(a, Node) and a.op == "placeholder"]
    if not isinstance(g, Node):
        return []
    return [Goal(a, value(g).dtype, g, "a dtype") for a in named if not is_tensor(a)]


def _argument_goals(
    template: GraphView, view: GraphView, p: Node, g: Node, swap: bool = False
) -> list[Goal] | Fail:
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


def _mirrored(template: GraphView, view: GraphView, p: Node, g: Node) -> list[Goal] | None:
    """op(a, b) read as op'(b, a)."""
    if form.MIRRORED.get(form.head(view, g)) != form.head(template, p):
        return None
    found = form.arguments(view, g)
    if found.get("alpha", 1) != 1 or not {"input", "other"} <= set(found):
        return None
    goals = _argument_goals(template, view, p, g, swap=True)
    return None if isinstance(goals, Fail) or not _plausible(template, view, goals) else goals


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


def _dual(template: GraphView, view: GraphView, p: Node, g: Node) -> list[Goal] | None:
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
    other = -number if head in ("add", "sub") else _reciprocal(number)
    if is_tensor(y) or other is None:
        return None
    return [Goal(x, a, g), Goal(y, other, g, f"the number in {form.label(view, g)}")]


def _reciprocal(number: float) -> float | None:
    """1 / c where dividing by it is multiplying by c, up to the last rounding."""
    if number == 0 or not math.isfinite(number):
        return None
    other = 1.0 / number
    return other if math.isfinite(other) and other != 0 else None
