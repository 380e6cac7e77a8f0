"""Normalisations in arithmetic, proved from the sum of squares on.

    x -> mean of squares, or variance -> (+ eps) -> root -> x / root

The statistic is followed down to what it divides. That this is what was squared, and that the sum
ran over the dimensions along which the quotient was broadcast, is proved by axes.
"""

from __future__ import annotations

from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, broadcast, fresh, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView

from ..captured import loses_nothing
from ..declined import Declined
from ..neighbours import same_shape
from .core import Core
from .statistic import SPREADS, STATISTICS, Fall, constant, dims_of, item_of

_LIMIT = 16


def read(view: GraphView, node: Node) -> Core | None:
    """The normalisation that a statistic belongs to; None where it is no statistic of one.

    Raises:
        Declined, Unproven: it looks like one, but something else is computed.
    """
    op = view.op(node)
    if op.name not in STATISTICS or not is_tensor(op.args.get("input")):
        return None
    squared = op.args["input"] if op.name in (*SPREADS, "norm", "vector_norm") else None
    if squared is None:
        squared = _square(view, op.args["input"])
    return None if squared is None else _Reader(view, node, squared).core()


class _Reader:
    """Follows one statistic."""

    def __init__(self, view: GraphView, statistic: Node, squared: Node) -> None:
        self.view, self.statistic, self.squared = view, statistic, squared
        self.fall = Fall(view, statistic)
        self.interior = self.fall.interior
        source = view.op(statistic).args["input"]
        if source is not squared:
            self.interior.add(source)

    def core(self) -> Core | None:
        found = self.fall.quotient()
        if found is None:
            return None
        node, row = found.node, found.row
        dims: Dims = fresh(value(node).shape, "x")
        inner = self._rows(found.divisor, dims, self.statistic)
        factors: list[Node | float] = [] if row.factor == 1 else [row.factor]
        x, centred = self._numerator(found.numerator, inner, factors)
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
            number = constant(other)
            if number is not None:
                return one, number
            if is_tensor(other) and self._squared_too(self._same(one), inner) is not None:
                return one, other
        raise Unproven("what is divided by the root of a mean of squares is not what was squared")

    def _squared_too(self, top: Node, inner: tuple[int, ...]) -> tuple[Node, bool] | None:
        """What was normalised, if that is a value that was squared for the statistic."""
        x, centred = self._centred(top, inner)
        if self.view.op(self.statistic).name in SPREADS:
            source = self._same(self.view.op(self.statistic).args["input"])
            return (x, True) if centred and source is x else None
        return (x, centred) if self._alike(self._same(self.squared), top, inner) else None

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
        inner = dims_of(op, len(dims))
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
        return op.args.get("input") is self.statistic and item_of(self.view, node) == 1

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
    power = op.name == "pow" and constant(op.args.get("other")) == 2
    if op.name == "square" or power or (op.name == "mul" and op.args.get("other") is source):
        return source
    return None
