"""From a mean of squares, or a variance, down to what its root divides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import fresh, leaves
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.view import GraphView

from ..captured import is_cast
from ..declined import Declined
from ..neighbours import DTYPES

STATISTICS = ("mean", "sum", "var", "var_mean", "std", "norm", "vector_norm")
SPREADS = ("var", "var_mean", "std")
_LIMIT = 16


@dataclass(frozen=True)
class Row:
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

    def inverted(self, number: float = 1.0) -> Row:
        """A number divided by it."""
        return replace(self, root=-1, factor=number / self.factor)


@dataclass(frozen=True)
class Quotient:
    """Where the root of a statistic divides something.

    Attributes:
        node: the quotient.
        numerator: what is divided.
        divisor: the root or its reciprocal.
        row: what that is.
    """

    node: Node
    numerator: Node
    divisor: Node
    row: Row


class Fall:
    """The way down from one statistic.

    Attributes:
        interior: nodes on the way.
    """

    def __init__(self, view: GraphView, statistic: Node) -> None:
        self.view, self.statistic = view, statistic
        self.interior: set[Node] = {statistic}

    def quotient(self) -> Quotient | None:
        """Where it ends; None where the statistic is none of a normalisation.

        Raises:
            Declined: it is nearly one.
        """
        return self._divided(*self._start())

    def _start(self) -> tuple[Node, Row]:
        """Where a statistic is read, and what it is."""
        node, op = self.statistic, self.view.op(self.statistic)
        if op.name in ("mean", "sum"):
            return node, Row(summed=op.name == "sum")
        if op.name in ("norm", "vector_norm"):
            if op.args.get("p", op.args.get("ord", 2)) not in (2, "fro"):
                raise Declined("the norm is no square root of a sum of squares", node)
            return node, Row(root=1, summed=True, floor=True)
        self._require_biased(op, node)
        if op.name != "var_mean":
            return node, Row(root=int(op.name == "std"))
        parts = {item_of(self.view, user): user for user in node.users}
        if set(parts) - {0, 1} or 0 not in parts:
            raise Declined("its variance is not read", node)
        self.interior.update(parts.values())
        return parts[0], Row()

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

    def _divided(self, node: Node, row: Row, left: int = _LIMIT) -> Quotient | None:
        """Where a statistic's root divides something; None where it goes another way."""
        users = [u for u in node.users if not self._asks_size(u)]
        found = [self._read_by(user, node, row, left) for user in users]
        if len(users) > 1 and any(found):
            others = [user for user, quotient in zip(users, found, strict=True) if not quotient]
            raise Declined("the statistic is used elsewhere", (others or users)[-1])
        return found[0] if found else None

    def _read_by(self, user: Node, node: Node, row: Row, left: int) -> Quotient | None:
        op = self.view.op(user)
        if op.inplace or draws(user, op) or not is_tensor(user) or not left:
            return None
        other = other_of(op, node)
        if is_tensor(other) and any(leaves((d,)) for d in fresh(value(other).shape)):
            return self._quotient(op, user, node, other, row)
        step = self._step(op, node, row, value(user).dtype)
        if step is None:
            return None
        self.interior.add(user)
        return self._divided(user, step, left - 1)

    def _asks_size(self, user: Node) -> bool:
        return user.op == "call_method" and user.target == "size"

    def _step(self, op: Op, node: Node, row: Row, to: torch.dtype) -> Row | None:
        """What an operator makes of a statistic, in a dtype; None where that is nothing known."""
        if op.kind is Kind.VIEW or op.name in ("clone", "contiguous", "alias"):
            return row
        if is_cast(op):
            return row if to in DTYPES else None
        number = constant(other_of(op, node))
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
            least = number if op.name == "maximum" else constant(op.args.get("min"))
            if least is not None and op.args.get("max") is None:
                return replace(row, eps=least / row.factor, floor=True)
        if op.name == "mul" and number is not None and number > 0 and row.root:
            return replace(row, factor=row.factor * number)
        return None

    def _plus(self, row: Row, number: float, node: Node) -> Row:
        if row.root == 1:
            raise Declined(
                "eps is added outside the root", node,
                "add it to the mean of squares, if that is what is meant",
            )  # fmt: skip
        if row.root or row.eps or number < 0:
            raise Declined("more than eps is added to the statistic", node)
        return replace(row, eps=number)

    def _shared(self, row: Row, number: float | None, node: Node) -> Row | None:
        """A sum that is divided by how many there are is a mean."""
        op = self.view.op(self.statistic)
        shape = value(op.args["input"]).shape
        dims = dims_of(op, len(shape))
        count = None if dims is None else math.prod(shape[d] for d in dims)
        if row.root or row.eps or not row.summed or not isinstance(count, int):
            return None
        if number != count:
            raise Declined("a sum of squares is divided by another number than of its terms", node)
        return replace(row, summed=False)

    def _quotient(self, op: Op, user: Node, node: Node, other: Node, row: Row) -> Quotient | None:
        if op.name == "div" and op.args.get("other") is node and row.root == 1:
            if op.args.get("rounding_mode") is not None:
                raise Declined("the quotient is rounded", user)
            return Quotient(user, other, node, row.inverted())
        if op.name == "mul" and row.root == -1:
            return Quotient(user, other, node, row)
        return None


def dims_of(op: Op, rank: int) -> tuple[int, ...] | None:
    """Dimensions of a reduction, counted from the first; None where they are not given."""
    found = op.args.get("dim")
    dims = [found] if isinstance(found, int) and not isinstance(found, bool) else found
    if not rank or not isinstance(dims, (list, tuple)) or not all(isinstance(d, int) for d in dims):
        return None
    return tuple(sorted(d % rank for d in dims))


def item_of(view: GraphView, node: Node) -> int | None:
    op = view.op(node)
    raw = node.args[1] if len(node.args) > 1 else None
    return raw if op.name == "getitem" and isinstance(raw, int) else None


def other_of(op: Op, node: Node) -> Any:
    """The second operand of an operator with two."""
    return op.args.get("other") if op.args.get("input") is node else op.args.get("input")


def constant(argument: Any) -> float | None:
    number = isinstance(argument, (int, float)) and not isinstance(argument, bool)
    return float(argument) if number else None
