"""Elements of tensors that are made from sizes: `arange`, `full`, `tril`, `diff`, `cumsum`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import sympy
import torch
from torch.fx import Node

from ..torch_private import to_expr
from .axes import Unproven
from .ops import is_tensor, value
from .positional import Truth, Value, Whole, bounded, constant, gate, not_negative

if TYPE_CHECKING:
    from .index import IndexReader

Index: TypeAlias = "tuple[sympy.Expr, ...]"
Rule: TypeAlias = "Callable[[IndexReader, Node, Index], Value]"
ZERO = sympy.Integer(0)


def is_one(size: Any) -> bool:
    size = to_expr(size)
    return isinstance(size, int) and size == 1


def size_expr(argument: Any) -> sympy.Expr:
    """A number or symbolic size as an expression."""
    if isinstance(argument, Node):
        argument = value(argument)
    if isinstance(argument, bool) or not isinstance(argument, (int, torch.SymInt)):
        raise Unproven("neither a tensor nor an integer")
    return sympy.sympify(to_expr(argument))


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _arange(reader: IndexReader, node: Node, index: Index) -> Value:
    dtype = value(node).dtype
    named = set(node.kwargs) & {"start", "end", "step", "out"}
    if dtype not in (torch.int32, torch.int64) or named or not 1 <= len(node.args) <= 3:
        raise Unproven("an arange of an unusual form")
    sizes = [size_expr(a) for a in node.args]
    start = sizes[0] if len(sizes) > 1 else ZERO
    step = sizes[2] if len(sizes) > 2 else sympy.Integer(1)
    if not step.is_Integer:
        raise Unproven("an arange with a symbolic step")
    return bounded(Whole(sympy.expand(start + step * index[0]), dtype))


def _filled(position: int, fixed: Any = None) -> Rule:
    def rule(reader: IndexReader, node: Node, index: Index) -> Value:
        fill = _argument(node, position, "fill_value", None) if fixed is None else fixed
        if not isinstance(fill, (bool, int, float)) or node.kwargs.get("out") is not None:
            raise Unproven("a tensor filled with what is no number")
        return constant(torch.tensor([fill]).to(value(node).dtype))

    return rule


def _triangle(lower: bool) -> Rule:
    def rule(reader: IndexReader, node: Node, index: Index) -> Value:
        source = _argument(node, 0, "input", None)
        diagonal = size_expr(_argument(node, 1, "diagonal", 0))
        if len(index) < 2 or not is_tensor(source):
            raise Unproven("a triangle of an unusual form")
        over = index[-2] + diagonal - index[-1]
        kept = not_negative(over if lower else -over, reader.sizes)
        return gate(kept, reader.at(source, index, node))

    return rule


def _dim(node: Node, position: int, rank: int, default: int | None) -> int:
    dim = _argument(node, position, "dim", default)
    if not isinstance(dim, int):
        raise Unproven("an unclear dimension")
    return dim % rank


def _diff(reader: IndexReader, node: Node, index: Index) -> Value:
    """`diff` with one element in front, where all differences are one and the same constant."""
    source, before = _argument(node, 0, "input", None), node.kwargs.get("prepend")
    if not isinstance(before, Node) or not is_tensor(before) or not isinstance(source, Node):
        raise Unproven("a difference without an element in front")
    if _argument(node, 1, "n", 1) != 1 or len(node.args) > 3:
        raise Unproven("a difference of an unusual form")
    dim = _dim(node, 2, len(index), -1)
    if node.kwargs.get("append") is not None or not is_one(value(before).shape[dim]):
        raise Unproven("a difference of an unusual form")
    symbol, inner = reader.along(source, dim, index, node)
    at_start = (*index[:dim], ZERO, *index[dim + 1 :])
    first, front = (reader.at(n, at_start, node) for n in (source, before))
    if not (isinstance(inner, Whole) and isinstance(first, Whole) and isinstance(front, Whole)):
        raise Unproven("a difference of what is no position")
    step = sympy.expand(inner.expr - inner.expr.xreplace({symbol: symbol - 1}))
    if not step.is_Integer or sympy.expand(first.expr - front.expr) != step:
        raise Unproven("differences that vary")
    return bounded(Whole(step, value(node).dtype))


def _cumsum(reader: IndexReader, node: Node, index: Index) -> Value:
    """A running sum of one constant."""
    source = _argument(node, 0, "input", None)
    dim = _dim(node, 1, len(index), None)
    if value(node).dtype is not torch.int64:
        raise Unproven("a sum of fractions")
    _, inner = reader.along(source, dim, index, node)
    if isinstance(inner, Truth) and inner.condition in (sympy.true, sympy.false):
        inner = Whole(sympy.Integer(int(bool(inner.condition))), torch.int64)
    if not isinstance(inner, Whole) or not inner.expr.is_Integer:
        raise Unproven("a sum of what is not constant")
    return bounded(Whole(sympy.expand(inner.expr * (index[dim] + 1)), torch.int64))


RULES: dict[str, Rule] = {
    "arange": _arange,
    "ones": _filled(0, 1), "ones_like": _filled(0, 1), "new_ones": _filled(0, 1),
    "zeros": _filled(0, 0), "zeros_like": _filled(0, 0), "new_zeros": _filled(0, 0),
    "full": _filled(1), "full_like": _filled(1), "new_full": _filled(2),
    "tril": _triangle(True), "triu": _triangle(False),
    "diff": _diff, "cumsum": _cumsum,
}  # fmt: skip
