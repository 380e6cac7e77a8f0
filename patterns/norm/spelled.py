"""Normalisations in arithmetic, proved from the sum of squares on.

    x -> mean of squares, or variance -> (+ eps) -> root -> x / root

The statistic is followed down to what it divides. That this is what was squared, and that the sum
ran over the dimensions along which the quotient was broadcast, is proved by axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, broadcast, fresh, leaves, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView

from ..captured import is_cast, loses_nothing
from ..declined import Declined
from .core import DTYPES, Core, same_shape

STATISTICS = ("mean", "sum", "var", "var_mean", "std", "norm", "vector_norm")
_SPREADS = ("var", "var_mean", "std")
_LIMIT = 16


_Quotient: TypeAlias = "tuple[Node, Node, Node, _Row]"
"""The quotient, what is divided, the root or its reciprocal, and what that is."""


@dataclass(frozen=True)
class _Row:
    """One number for each row: a sum of squares, or what was made of it.

    Attributes:
        root: how often a root was taken: 0, 1, or -1 for the reciprocal of one.
        summed: of the sum, not the mean.
        eps: what was added, or the least that the root can be.
        factor: with which the root, or its reciprocal, was multiplied.
    """

    root: int = 0
    summed: bool = False
    eps: float = 0.0
    floor: bool = False
    factor: float = 1.0

    def inverted(self, number: float = 1.0) -> _Row:
        """A number divided by it."""
        return replace(self, root=-1, factor=number / self.factor)


def read(view: GraphView, node: Node) -> Core | None:
    """The normalisation that a statistic belongs to; None where it is no statistic of one.

    Raises:
        Declined, Unproven: it looks like one, but something else is computed.
    """
    op = view.op(node)
    if op.name not in STATISTICS or not is_tensor(op.args.get("input")):
        return None
    squared = op.args["input"] if op.name in (*_SPREADS, "norm", "vector_norm") else None
    if squared is None:
        squared = _square(view, op.args["input"])
    return None if squared is None else _Reader(view, node, squared).core()


class _Reader:
    """Follows one statistic."""

    def __init__(self, view: GraphView, statistic: Node, squared: Node) -> None:
        self.view, self.statistic, self.squared = view, statistic, squared
        self.interior: set[Node] = {statistic}
        source = view.op(statistic).args["input"]
        if source is not squared:
            self.interior.add(source)

    def core(self) -> Core | None:
        found = self._divided(*self._start())
        if found is None:
            return None
        node, numerator, divisor, row = found
        dims: Dims = fresh(value(node).shape, "x")
        inner = self._rows(divisor, dims, self.statistic)
        factors: list[Node | float] = [] if row.factor == 1 else [row.factor]
        x, centred = self._numerator(numerator, inner, factors)
        if not same_shape(x, node):
            raise Declined("what is divided is broadcast", node)
        self.interior.add(node)
        x = self._kept(x)
        return Core(
            node, x, inner, row.eps, value(node).dtype, frozenset(self.interior),
            centred=centred, summed=row.summed, floor=row.floor, native=False,
            factors=tuple(factors),
        )  # fmt: skip

    def _numerator(
        self, node: Node, inner: tuple[int, ...], factors: list[Node | float]
    ) -> tuple[Node, bool]:
        """What was normalised, and whether its mean was taken away; adds what it is multiplied
        with before it is divided.

        Raises:
            Declined: it is not what was squared.
        """
        passed: list[Node] = []
        for _ in range(_LIMIT):
            top = self._same(node)
            found = self._squared_too(top, inner)
            if found is not None:
                self.interior.update(passed)
                return found
            op = self.view.op(top)
            if op.name != "mul" or op.inplace:
                break
            passed.append(top)
            node, factor = self._unfactored(op, inner)
            factors.append(factor)
        raise Declined("what is squared, less its mean or not, is not what is divided", node)

    def _unfactored(self, op: Op, inner: tuple[int, ...]) -> tuple[Node, Node | float]:
        """Of a product the operand that may be what was squared, and the other."""
        a, b = op.args["input"], op.args["other"]
        for one, other in ((a, b), (b, a)):
            if not is_tensor(one):
                continue
            number = _constant(other)
            if number is not None:
                return one, number
            if is_tensor(other) and self._squared_too(self._same(one), inner) is not None:
                return one, other
        raise Unproven("what is divided by the root of a mean of squares is not what was squared")

    def _squared_too(self, top: Node, inner: tuple[int, ...]) -> tuple[Node, bool] | None:
        """What was normalised, if that is a value that was squared for the statistic."""
        x, centred = self._centred(top, inner)
        if self.view.op(self.statistic).name in _SPREADS:
            source = self._same(self.view.op(self.statistic).args["input"])
            return (x, True) if centred and source is x else None
        return (x, centred) if self._alike(self._same(self.squared), top, inner) else None

    # -- down from the statistic

    def _start(self) -> tuple[Node, _Row]:
        """Where a statistic is read, and what it is."""
        node, op = self.statistic, self.view.op(self.statistic)
        if op.name in ("mean", "sum"):
            return node, _Row(summed=op.name == "sum")
        if op.name in ("norm", "vector_norm"):
            if op.args.get("p", op.args.get("ord", 2)) not in (2, "fro"):
                raise Declined("the norm is no square root of a sum of squares", node)
            return node, _Row(root=1, summed=True)
        self._require_biased(op, node)
        if op.name != "var_mean":
            return node, _Row(root=int(op.name == "std"))
        parts = {_item(self.view, user): user for user in node.users}
        if set(parts) - {0, 1} or 0 not in parts:
            raise Declined("its variance is not read", node)
        self.interior.update(parts.values())
        return parts[0], _Row()

    def _require_biased(self, op: Op, node: Node) -> None:
        given = op.args.get("correction", op.args.get("unbiased", True))
        if given is None or given is True or given == 1:
            raise Declined(
                f"`{op.name}` divides by n - 1 where it is not told otherwise, and a "
                "normalisation by n",
                node,
                "pass correction=0, if that is what is meant",
            )
        if given is not False and given != 0:
            raise Declined(f"`{op.name}` divides by n minus another number than 0", node)

    def _divided(self, node: Node, row: _Row, left: int = _LIMIT) -> _Quotient | None:
        """Where a statistic's root divides something; None where it goes another way."""
        users = [u for u in node.users if not self._asks_size(u)]
        found = [self._read_by(user, node, row, left) for user in users]
        if len(users) > 1 and any(found):
            others = [user for user, quotient in zip(users, found, strict=True) if not quotient]
            raise Declined("the statistic is used elsewhere", (others or users)[-1])
        return found[0] if found else None

    def _read_by(self, user: Node, node: Node, row: _Row, left: int) -> _Quotient | None:
        op = self.view.op(user)
        if op.inplace or draws(user, op) or not is_tensor(user) or not left:
            return None
        other = _other(op, node)
        if is_tensor(other) and any(leaves((d,)) for d in fresh(value(other).shape)):
            return self._quotient(op, user, node, other, row)
        step = self._step(op, node, row, value(user).dtype)
        if step is None:
            return None
        self.interior.add(user)
        return self._divided(user, step, left - 1)

    def _asks_size(self, user: Node) -> bool:
        return user.op == "call_method" and user.target == "size"

    def _step(self, op: Op, node: Node, row: _Row, to: torch.dtype) -> _Row | None:
        """What an operator makes of a statistic, in a dtype; None where that is nothing known."""
        if op.kind is Kind.VIEW or op.name in ("clone", "contiguous", "alias"):
            return row
        if is_cast(op):
            return row if to in DTYPES else None
        number = _constant(_other(op, node))
        if op.name == "add" and number is not None and op.args.get("alpha", 1) == 1:
            return self._plus(row, number, node)
        if op.name == "sqrt" and row.root == 0:
            return replace(row, root=1)
        if op.name == "rsqrt" and row.root == 0:
            return replace(row, root=-1)
        if op.name == "reciprocal" and row.root == 1:
            return row.inverted()
        if op.name == "div" and number and row.root == 1 and op.args.get("other") is node:
            return row.inverted(number)
        if op.name == "div" and op.args.get("input") is node and not row.root:
            return self._shared(row, number, node)
        if op.name == "div" and op.args.get("input") is node and number is not None and number > 0:
            return replace(row, factor=row.factor / number)
        if op.name == "pow" and op.args.get("input") is node and row.root == 0:
            return {0.5: replace(row, root=1), -0.5: replace(row, root=-1)}.get(number or 0.0)
        if op.name in ("clamp", "clamp_min", "maximum") and row.root == 1 and not row.eps:
            least = number if op.name == "maximum" else _constant(op.args.get("min"))
            if least is not None and op.args.get("max") is None:
                return replace(row, eps=least / row.factor, floor=True)
        if op.name == "mul" and number is not None and number > 0 and row.root:
            return replace(row, factor=row.factor * number)
        return None

    def _plus(self, row: _Row, number: float, node: Node) -> _Row:
        if row.root == 1:
            raise Declined(
                "eps is added outside the root", node,
                "add it to the mean of squares, if that is what is meant",
            )  # fmt: skip
        if row.root or row.eps or number < 0:
            raise Declined("more than eps is added to the statistic", node)
        return replace(row, eps=number)

    def _shared(self, row: _Row, number: float | None, node: Node) -> _Row | None:
        """A sum that is divided by how many there are is a mean."""
        op = self.view.op(self.statistic)
        shape = value(op.args["input"]).shape
        dims = _dims(op, len(shape))
        count = None if dims is None else math.prod(shape[d] for d in dims)
        if row.root or row.eps or not row.summed or not isinstance(count, int):
            return None
        if number != count:
            raise Declined("a sum of squares is divided by another number than of its terms", node)
        return replace(row, summed=False)

    def _quotient(self, op: Op, user: Node, node: Node, other: Node, row: _Row) -> _Quotient | None:
        if op.name == "div" and op.args.get("other") is node and row.root == 1:
            if op.args.get("rounding_mode") is not None:
                raise Declined("the quotient is rounded", user)
            return user, other, node, row.inverted()
        if op.name == "mul" and row.root == -1:
            return user, other, node, row
        return None

    # -- axes

    def _rows(self, row: Node, dims: Dims, statistic: Node) -> tuple[int, ...]:
        """Over which dimensions of what has `dims` a statistic was taken that `row` was made of.

        Raises:
            Declined: its rows are not those along which it is broadcast.
        """
        op = self.view.op(statistic)
        source = op.args["input"]
        if value(source).ndim != len(dims):
            raise Declined("the statistic is of a tensor of another shape", statistic)
        inner = _dims(op, len(dims))
        if not inner:
            raise Declined("the dimensions of a statistic are not known", statistic)
        keeps = op.args.get("keepdim", False) is True
        expected = [() if d in inner else dim for d, dim in enumerate(dims)]
        if not keeps:
            expected = [dim for d, dim in enumerate(dims) if d not in inner]
        found = self._pulled(row, broadcast(dims, value(row).shape), statistic)
        if list(resolve(found)) != list(resolve(expected)):
            raise Declined("the statistic is broadcast along another axis than its own", row)
        return inner

    def _pulled(self, node: Node, dims: Dims, statistic: Node) -> Dims:
        """Axes of a statistic, given those of what was made of it."""
        for _ in range(2 * _LIMIT):
            if node is statistic:
                return dims
            op = self.view.op(node)
            if op.kind is Kind.VIEW:
                node, dims = pull_view(op, node, dims)
            elif op.kind is Kind.POINTWISE:
                tensors = [n for n in node.all_input_nodes if is_tensor(n) and value(n).ndim]
                if len(tensors) != 1:
                    break
                node, dims = tensors[0], broadcast(dims, value(tensors[0]).shape)
            elif op.name == "getitem" and op.args.get("input") is statistic:
                return dims
            else:
                break
        raise Unproven("a statistic that is combined with other tensors")

    # -- up from what is divided

    def _same(self, node: Node) -> Node:
        """A value without copies of it, and casts that change no number."""
        for _ in range(_LIMIT):
            op = self.view.op(node)
            if op.inplace or op.kind is not Kind.POINTWISE or not loses_nothing(op, node):
                break
            self.interior.add(node)
            node = op.args["input"]
        return node

    def _centred(self, top: Node, inner: tuple[int, ...]) -> tuple[Node, bool]:
        """What was normalised, and whether its mean was taken away from it."""
        op = self.view.op(top)
        mean = op.args.get("other")
        if op.name != "sub" or op.inplace or op.args.get("alpha", 1) != 1 or not is_tensor(mean):
            return top, False
        x = self._same(op.args["input"]) if is_tensor(op.args["input"]) else None
        if x is None or not self._is_mean(mean, x, inner):
            return top, False
        self.interior.add(top)
        return x, True

    def _is_mean(self, node: Node, x: Node, inner: tuple[int, ...]) -> bool:
        passed: list[Node] = []
        row = node
        for _ in range(_LIMIT):
            op = self.view.op(node)
            passed.append(node)
            if op.name == "mean" and op.args.get("dtype") in (None, value(node).dtype):
                break
            if op.name == "getitem" and self._is_other_part(node):
                op, node = self.view.op(self.statistic), self.statistic
                break
            if op.kind is Kind.VIEW or (op.kind is Kind.POINTWISE and loses_nothing(op, node)):
                node = op.args["input"]
                continue
            return False
        else:
            return False
        if self._same(op.args["input"]) is not x:
            return False
        dims: Dims = fresh(value(x).shape, "m")
        if self._rows(row, dims, node) != inner:
            raise Declined("the mean is taken over other dimensions than the variance", node)
        self.interior.update(passed)
        return True

    def _is_other_part(self, node: Node) -> bool:
        op = self.view.op(node)
        return op.args.get("input") is self.statistic and _item(self.view, node) == 1

    def _alike(self, a: Node, b: Node, inner: tuple[int, ...]) -> bool:
        """Whether two nodes are the same value: one node, or the same tensor less its mean."""
        if a is b:
            return True
        (x, own), (y, other) = self._centred(a, inner), self._centred(b, inner)
        return x is y and own and other

    def _kept(self, x: Node) -> Node:
        """What the region reads: what was cast, or its cast where others read that too."""
        for node in sorted(self.interior, key=self.view.order.__getitem__, reverse=True):
            escapes = any(user not in self.interior for user in node.users)
            if escapes and self._leads_to(node, x):
                self._forget_above(node)
                return node
        return x

    def _leads_to(self, node: Node, x: Node) -> bool:
        while node is not x:
            op = self.view.op(node)
            if op.kind is not Kind.POINTWISE or op.inplace or not loses_nothing(op, node):
                return False
            node = op.args["input"]
        return True

    def _forget_above(self, node: Node) -> None:
        while node in self.interior:
            self.interior.discard(node)
            node = self.view.op(node).args["input"]


def _square(view: GraphView, node: Node) -> Node | None:
    """What a tensor is the square of."""
    op = view.op(node)
    source = op.args.get("input")
    if op.inplace or not is_tensor(source):
        return None
    power = op.name == "pow" and _constant(op.args.get("other")) == 2
    if op.name == "square" or power or (op.name == "mul" and op.args.get("other") is source):
        return source
    return None


def _dims(op: Op, rank: int) -> tuple[int, ...] | None:
    """Dimensions of a reduction, counted from the first; None where they are not given."""
    found = op.args.get("dim")
    dims = [found] if isinstance(found, int) and not isinstance(found, bool) else found
    if not isinstance(dims, (list, tuple)) or not all(isinstance(d, int) for d in dims):
        return None
    return tuple(sorted(d % rank for d in dims))


def _item(view: GraphView, node: Node) -> int | None:
    op = view.op(node)
    raw = node.args[1] if len(node.args) > 1 else None
    return raw if op.name == "getitem" and isinstance(raw, int) else None


def _other(op: Op, node: Node) -> Any:
    """The second operand of an operator with two."""
    return op.args.get("other") if op.args.get("input") is node else op.args.get("input")


def _constant(argument: Any) -> float | None:
    number = isinstance(argument, (int, float)) and not isinstance(argument, bool)
    return float(argument) if number else None
