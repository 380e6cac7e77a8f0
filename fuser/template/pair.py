"""Open one operator of a template at one value of a graph: the ways in which they can be equal."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..graph.ops import is_tensor, value
from ..graph.view import GraphView
from . import form
from .equal import is_number
from .equivalent import equivalents
from .goals import Branch, Fail, Goal, argument_goals
from .rounding import exacting, overflows
from .values import Permuted, Product, Value, opened, permuted


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
        for way in _other_spellings(template, view, p, g):
            if isinstance(way, Branch):
                found.append(way)
            else:
                failed = way
    return [*found, *optional] or failed


def _other_spellings(template: GraphView, view: GraphView, p: Node, g: Node) -> list[Branch | Fail]:
    found = equivalents(template, view, p, g)
    inside = opened(view.op(g), g)
    if inside is not None and form.head(template, p) in ("matmul", form.PERMUTE):
        found += _opened(template, view, p, g, inside)
    if form.is_noop(view, g):
        source = view.op(g).args["input"]
        found.append(Branch([Goal(p, source, g)], None, (g,)))
    return found


def _opened(
    template: GraphView, view: GraphView, p: Node, g: Node, inside: Value
) -> list[Branch | Fail]:
    if view.op(g).name == "einsum" and p in exacting(template):
        return [Fail("an einsum is a matmul only up to rounding", g)]
    ways = branches(template, view, p, inside, g)
    return [] if isinstance(ways, Fail) else [_holding(way, p, g) for way in ways]


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
        case "where" if _overflows(template, view, p, g):
            return Fail("the number is infinite in this dtype, which masked_fill refuses", g)
        case _:
            return argument_goals(template, view, p, g)


def _overflows(template: GraphView, view: GraphView, p: Node, g: Node) -> bool:
    """`where` makes an infinity of a number too large, `masked_fill` an error."""
    if (template.op(p).name, view.op(g).name) != ("masked_fill", "where"):
        return False
    number: Any = view.op(g).args.get("input")
    return is_number(number) and overflows(number, value(g).dtype)


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
        return argument_goals(template, view, p, g)
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
