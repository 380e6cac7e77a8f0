"""Which experts a dense weight `c[t, e]` may be anything but zero for.

A weight for every token and expert says nothing about which experts a token chose, unless it is
zero for all others whatever the numbers are: scattered into zeros, multiplied with a mask of ones
and zeros, or a softmax, sigmoid or exponential of -inf. Then the chosen ones are the indices that
were scattered at, which must be the result of a `topk` or `argmax`, so that none is there twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, broadcast, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.graph.view import GraphView

from .space import CASTS, COPIES, Place

MAX_DEPTH = 64
ZERO, LOWEST = 0.0, -math.inf


class Routing:
    """Looks for the indices outside of which a tensor holds one number.

    Attributes:
        experts: the axis along which indices choose.
    """

    def __init__(self, view: GraphView, experts: Dim) -> None:
        self.view, self.experts = view, experts
        self._depth = 0

    def support(self, node: Node, dims: Dims, number: float = ZERO) -> Place | None:
        """The chosen experts, `(..., K)`, beside which a tensor is `number`; None if unknown.

        Args:
            node: the tensor.
            dims: its axes.
            number: zero, which the False of a mask is too, or -inf.
        """
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH or self._is_written(node, len(self.view.order)):
                return None
            return self._support(node, resolve(dims), number)
        except Unproven:
            return None
        finally:
            self._depth -= 1

    def _is_written(self, node: Node, before: int) -> bool:
        return self.view.mutated_between(node, self.view.order[node] + 1, before) is not None

    def _support(self, node: Node, dims: Dims, number: float) -> Place | None:
        op = self.view.op(node)
        if op.kind is Kind.VIEW and not op.inplace:
            source, pulled = pull_view(op, node, dims)
            return self.support(source, pulled, number)
        source: Any = op.args.get("input")
        if op.name in COPIES:
            return self.support(source, dims, number)
        if op.name in (*CASTS, "bool", "int", "long", "double"):
            holds = number == ZERO or value(node).dtype.is_floating_point
            return self.support(source, dims, number) if holds else None
        rule: Callable[[Op, Node, Dims, Any], Place | None] | None = {
            "scatter": self._scatter, "scatter_add": self._scatter, "mul": self._mul,
            "div": self._first, "softmax": self._softmax, "sigmoid": self._unary,
            "exp": self._unary, "where": self._where, "masked_fill": self._filled,
            "sum": self._sum, "one_hot": self._one_hot, "relu": self._unary_zero,
            "bitwise_and": self._mul, "logical_and": self._mul,
            "ne": self._compared, "gt": self._compared,
        }.get(op.name)  # fmt: skip
        return None if rule is None else rule(op, node, dims, number)

    # -- where a number comes from

    def _scatter(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`full(number).scatter(e, indices, anything)`."""
        if op.args.get("reduce") is not None:
            return None
        base, dim, index = op.args["input"], op.args["dim"], op.args["index"]
        if not isinstance(dim, int) or not self._is_experts(dims[dim]):
            return None
        if not self._is_full(base, number) or self._is_written(base, self.view.order[node]):
            return None
        at = dim % len(dims)
        chosen = fresh((value(index).shape[at],), "k")[0]
        for i, (n, size) in enumerate(zip(value(node).shape, value(index).shape, strict=True)):
            if i != at and n != size:
                return None  # a part of the tokens
        return self.unique(index, (*dims[:at], chosen, *dims[at + 1 :]), chosen)

    def _one_hot(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`one_hot(indices)`, still with its choices apart."""
        if number != ZERO or not self._is_experts(dims[-1]):
            return None
        index = op.args["input"]
        own = dims[:-1]
        return Place(index, own)

    def _sum(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """Choices that are added up, each with a support of one expert."""
        if number != ZERO:
            return None
        found = summed(op, node, dims)
        if found is None:
            return None
        source, pulled, axis = found
        place = self.support(source, pulled, number)
        if place is None or set(leaves((axis,))) - set(leaves(place.dims)):
            return None
        return self.unique(place.node, place.dims, axis)

    def _is_full(self, node: Node, number: Any) -> bool:
        """Whether a tensor was made of one number, and not written to before it was read."""
        op = self.view.op(node)
        name = str(getattr(node.target, "__name__", node.target))
        wanted = {"zeros": ZERO, "zeros_like": ZERO, "new_zeros": ZERO}
        if name in wanted:
            found: Any = wanted[name]
        elif name in ("full", "new_full", "full_like"):
            at = {"full": 1, "new_full": 2, "full_like": 1}[name]
            found = node.kwargs.get("fill_value", node.args[at] if len(node.args) > at else None)
        elif op.kind is Kind.VIEW and not op.inplace:
            return self._is_full(op.args["input"], number)
        else:
            return False
        return isinstance(found, (bool, int, float)) and float(found) == number

    # -- what keeps it

    def _mul(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """A product with a zero, where the other factor is a number whatever happens."""
        if number != ZERO:
            return None
        inputs = list(pull_pointwise(op, node, dims).items())
        for i, (source, pulled) in enumerate(inputs):
            found = self.support(source, pulled, number)
            others = [pair for j, pair in enumerate(inputs) if j != i]
            if found is not None and all(self._is_harmless(*other) for other in others):
                return found
        return None

    def _first(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """A quotient of a zero by what is the same for all experts of a token."""
        source, divisor = op.args["input"], op.args["other"]
        if number != ZERO or op.args.get("rounding_mode") is not None or not is_tensor(source):
            return None
        if is_tensor(divisor):
            own = broadcast(dims, value(divisor).shape)
            if set(leaves(own)) & set(leaves((self.experts,))):
                return None
        elif not isinstance(divisor, (int, float)) or divisor == 0:
            return None
        return self.support(source, broadcast(dims, value(source).shape), ZERO)

    def _is_harmless(self, node: Node, dims: Dims) -> bool:
        """Whether a factor cannot be infinite, or no number, for an expert alone that was not
        chosen: it is a probability, an integer, the same for all experts, or zero as well."""
        if not set(leaves(dims)) & set(leaves((self.experts,))):
            return True
        return self._is_bounded(node, dims) or self.support(node, dims, ZERO) is not None

    def _is_bounded(self, node: Node, dims: Dims) -> bool:
        """Whether a tensor is made of probabilities, or integers."""
        for _ in range(MAX_DEPTH):
            op = self.view.op(node)
            if not value(node).dtype.is_floating_point or op.name in ("sigmoid", "tanh"):
                return True
            if op.kind is Kind.SOFTMAX:
                dim = op.args.get("dim")
                return isinstance(dim, int) and self._is_experts(resolve(dims)[dim])
            if op.kind is Kind.VIEW and not op.inplace:
                node, dims = pull_view(op, node, dims)
            elif op.name in (*COPIES, *CASTS):
                node = op.args["input"]
            else:
                return False
        return False

    def _unary(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        return self.support(op.args["input"], dims, LOWEST) if number == ZERO else None

    def _unary_zero(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        return self.support(op.args["input"], dims, ZERO) if number == ZERO else None

    def _softmax(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        dim = op.args.get("dim")
        if number != ZERO or not isinstance(dim, int) or not self._is_experts(dims[dim]):
            return None
        return self.support(op.args["input"], dims, LOWEST)

    def _where(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`where(mask, anything, number)` with a mask that is false elsewhere."""
        other, condition = op.args.get("other"), op.args["condition"]
        if isinstance(other, bool) or not isinstance(other, (int, float)):
            if not (is_tensor(other) and self._is_full(other, number)):
                return None
        elif float(other) != float(number):
            return None
        return self.support(condition, broadcast(dims, value(condition).shape), ZERO)

    def _filled(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`masked_fill(~mask, number)`."""
        fill, mask = op.args["value"], op.args["mask"]
        if not isinstance(fill, (int, float)) or float(fill) != float(number):
            return None
        inverted = self.view.op(mask)
        if inverted.name not in ("bitwise_not", "logical_not"):
            compared = inverted.name == "eq" and inverted.args.get("other") in (0, 0.0, False)
            if not compared:
                return None
        source = inverted.args["input"]
        return self.support(source, broadcast(dims, value(source).shape), ZERO)

    def _compared(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`x != 0`, or `x > 0`, is false where x is zero."""
        if number != ZERO or op.args.get("other") not in (0, 0.0):
            return None
        source = op.args["input"]
        return self.support(source, broadcast(dims, value(source).shape), ZERO)

    # -- indices

    def _is_experts(self, dim: Dim) -> bool:
        return set(leaves((dim,))) == set(leaves((self.experts,)))

    def unique(self, index: Node, dims: Dims, chosen: Dim) -> Place | None:
        """The indices, if none is there twice for one token."""
        node, place = index, resolve(dims)
        for _ in range(MAX_DEPTH):
            op = self.view.op(node)
            if op.kind is Kind.VIEW and not op.inplace:
                node, place = pull_view(op, node, place)
            elif op.name in (*COPIES, "to", "long", "int"):
                node = op.args["input"]
            else:
                break
        place = resolve(place)
        if not leaves((chosen,)):
            return Place(index, resolve(dims))  # one choice only
        at = [i for i, dim in enumerate(place) if set(leaves((dim,))) == set(leaves((chosen,)))]
        if len(at) != 1 or not self._is_topk(node, at[0], len(place)):
            return None
        return Place(index, resolve(dims))

    def _is_topk(self, node: Node, dim: int, rank: int) -> bool:
        """Whether a tensor is what `topk` calls indices, of that dimension."""
        op = found_by(self.view, node)
        if op is None or op.name != "topk":
            return False
        along = op.args.get("dim", -1)
        return isinstance(along, int) and along % rank == dim


def found_by(view: GraphView, node: Node) -> Op | None:
    """The operator that gives a tensor of positions beside one of values."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or len(node.args) < 2:
        return None
    part = (getattr(node.target, "__name__", str(node.target)), node.args[1])
    if part not in (("getitem", 1), ("getattr", "indices")):
        return None
    return view.op(source)


def are_experts(view: GraphView, node: Node, count: int) -> bool:
    """Whether every element of a tensor is the number of one of so many experts."""
    return experts_among(view, node) == count


def experts_among(view: GraphView, node: Node) -> int | None:
    """Of how many experts the elements of a tensor are numbers: positions among as many scores."""
    for _ in range(MAX_DEPTH):
        op = view.op(node)
        if (op.kind is Kind.VIEW and not op.inplace) or op.name in (*COPIES, "to", "long", "int"):
            node = op.args["input"]
        else:
            break
    op = view.op(node)
    if op.kind is Kind.CAT:
        tensors = op.args.get("tensors")
        listed = tensors if isinstance(tensors, (tuple, list)) else ()
        counts = {experts_among(view, n) for n in listed}
        return counts.pop() if len(counts) == 1 else None
    found = op if op.name == "argmax" else found_by(view, node)
    if found is None or found.name not in ("topk", "max", "argmax"):
        return None
    scores, dim = found.args.get("input"), found.args.get("dim", -1)
    if not is_tensor(scores) or type(dim) is not int:
        return None
    count = value(scores).shape[dim]
    return count if isinstance(count, int) else None


def summed(op: Op, node: Node, dims: Dims) -> tuple[Node, Dims, Dim] | None:
    """The input of a sum over one dimension, its axes, and the axis that is added up."""
    source, dim = op.args.get("input"), op.args.get("dim")
    if isinstance(dim, (list, tuple)) and len(dim) == 1:
        (dim,) = dim
    if op.name != "sum" or not is_tensor(source) or type(dim) is not int:
        return None
    rank = value(source).ndim
    at = dim % rank
    axis = fresh((value(source).shape[at],), "summed")[0]
    kept = bool(op.args.get("keepdim", False))
    rest = dims[at + 1 :] if kept else dims[at:]
    return source, (*dims[:at], axis, *rest), axis
