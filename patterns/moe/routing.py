"""Which experts a dense weight `c[t, e]` may be anything but zero for.

A weight for every token and expert says nothing about which experts a token chose, unless it is
zero for all others whatever the numbers are: scattered into zeros, multiplied with a mask of ones
and zeros, or a softmax, sigmoid or exponential of -inf. Then the chosen ones are the indices that
were scattered at, which must be positions that `topk`, `sort` or `argmax` found, so that none is
there twice. Where no indices are behind a mask, as it compares scores, the mask itself says it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import (
    Axis,
    Dim,
    Dims,
    Unproven,
    broadcast,
    fresh,
    leaves,
    quotient,
    resolve,
    size_of,
)
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import is_contraction, pull_contraction, pull_pointwise, pull_view
from fuser.graph.view import GraphView

from .arange import is_arange
from .choices import MAX_DEPTH, are_experts, distinct
from .copies import CASTS, COPIES
from .filling import filled_with, put, writer
from .space import Place

_WRITING = ("scatter", "scatter_add", "scatter_reduce", "index_put", "masked_fill")
ZERO, ONE, LOWEST = 0.0, 1.0, -math.inf


@dataclass(frozen=True)
class Mask(Place):
    """Which experts a token goes through, of any number: those at which it is not zero; or, where
    it is `inverted`, those at which it is."""

    inverted: bool = False


class Routing:
    """Looks for the indices outside of which a tensor holds one number.

    Attributes:
        experts: the axis along which indices choose.
        masks: a mask will do instead of indices.
    """

    def __init__(self, view: GraphView, experts: Dim, *, masks: bool = False) -> None:
        self.view, self.experts, self.masks = view, experts, masks
        self._depth = 0
        self._reader: Node | None = None

    def support(self, node: Node, dims: Dims, number: float = ZERO) -> Place | None:
        """The chosen experts, `(..., K)`, beside which a tensor is `number`; None if unknown.

        Args:
            node: the tensor.
            dims: its axes.
            number: zero or one, which the truth values of a mask are too, or -inf.
        """
        self._depth += 1
        reader, self._reader = self._reader, node
        try:
            if self._depth > MAX_DEPTH:
                return None
            if self.masks and self._is_mask(node, resolve(dims), number):
                return Mask(node, resolve(dims), inverted=number == ONE)
            if not self.view.is_written(node):
                return self._support(node, resolve(dims), number)
            written = self._reader = writer(self.view, node, reader=reader)
            return None if written is None else self._written(written, resolve(dims), number)
        except Unproven:
            return None
        finally:
            self._depth, self._reader = self._depth - 1, reader

    def _is_mask(self, node: Node, dims: Dims, number: float) -> bool:
        """Whether a tensor tells by itself where it is that number, and no gradient passes it."""
        dtype = value(node).dtype
        tells = dtype is torch.bool if number == ONE else not dtype.is_floating_point
        known = number in (ZERO, ONE) and tells and not dtype.is_complex
        apart = set(leaves((self.experts,))) <= set(leaves(dims))
        written = self.view.is_written(node) and writer(self.view, node) is None
        return known and apart and not written

    def unique(self, index: Node, dims: Dims, chosen: Dim) -> Place | None:
        """The indices, if none is there twice for one token."""
        return Place(index, resolve(dims)) if distinct(self.view, index, dims, chosen) else None

    def _is_experts(self, dim: Dim) -> bool:
        return set(leaves((dim,))) == set(leaves((self.experts,)))

    def _is_number(self, argument: Any, number: float, reader: Node) -> bool:
        if is_tensor(argument):
            return filled_with(self.view, argument, self.view.order[reader]) == number
        return isinstance(argument, (bool, int, float)) and float(argument) == number

    def _support(self, node: Node, dims: Dims, number: float) -> Place | None:
        op = self.view.op(node)
        if op.kind is Kind.VIEW and not op.inplace:
            source, pulled = pull_view(op, node, dims)
            return self.support(source, pulled, number)
        source: Any = op.args.get("input")
        if op.name in COPIES:
            return self.support(source, dims, number)
        if op.name in (*CASTS, "bool", "int", "long", "double"):
            holds = number in (ZERO, ONE) or value(node).dtype.is_floating_point
            return self.support(source, dims, number) if holds else None
        if is_contraction(op):
            return self._contracted(op, node, dims) if number == ZERO else None
        rule: Callable[[Op, Node, Dims, Any], Place | None] | None = {
            "scatter": self._scatter, "scatter_add": self._scatter, "scatter_reduce": self._scatter,
            "index_put": self._put, "one_hot": self._one_hot, "eq": self._equal,
            "sum": self._sum, "any": self._sum, "amax": self._sum,
            "mul": self._mul, "bitwise_and": self._mul, "logical_and": self._mul,
            "add": self._add, "div": self._first, "softmax": self._softmax,
            "normalize": self._normalised,
            "sigmoid": self._unary, "exp": self._unary, "log": self._logarithm,
            "relu": self._unary_zero, "nan_to_num": self._unary_zero,
            "where": self._where, "masked_fill": self._filled,
            "ne": self._compared, "gt": self._compared,
            "sub": self._inverted, "bitwise_not": self._inverted, "logical_not": self._inverted,
        }.get(op.name)  # fmt: skip
        return None if rule is None else rule(op, node, dims, number)

    # -- where a number comes from

    def _written(self, node: Node, dims: Dims, number: float) -> Place | None:
        """Of a tensor that an operator has written to."""
        if self.view.op(node).name in _WRITING:
            return self._support(node, dims, number)
        return self._put(self.view.op(node), node, dims, number)

    def _scatter(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`full(number).scatter(e, indices, anything)`, which is added to what is there or not."""
        base, dim, index = op.args["input"], op.args["dim"], op.args["index"]
        if not isinstance(dim, int) or not self._is_experts(dims[dim]):
            return None
        if not self._is_number(base, number, node):
            return None
        at = dim % len(dims)
        chosen = fresh((value(index).shape[at],), "k")[0]
        for i, (n, size) in enumerate(zip(value(base).shape, value(index).shape, strict=True)):
            if i != at and n != size:
                return None  # a part of the tokens
        return self.unique(index, (*dims[:at], chosen, *dims[at + 1 :]), chosen)

    def _put(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`full(number).index_put((tokens, indices), anything)`, or `anything[mask] = number`."""
        found = put(self.view, node)
        if found is None:
            return None
        target, index, values = found
        mask = index[0] if len(index) == 1 else None
        if is_tensor(mask) and value(mask).dtype is torch.bool:
            whole = value(mask).ndim == value(target).ndim and not op.args.get("accumulate")
            known = whole and self._is_number(values, number, node)
            return self.support(mask, dims, ONE) if known else None
        return self._placed(index, dims) if self._is_number(target, number, node) else None

    def _placed(self, index: Sequence[Any], dims: Dims) -> Place | None:
        """The indices of `dense[number of the token, indices]`, for every token."""
        at = [i for i, dim in enumerate(dims) if self._is_experts(dim)]
        if len(at) != 1 or len(index) != len(dims) or not all(map(is_tensor, index)):
            return None
        chosen, others = index[at[0]], [i for i in range(len(dims)) if i != at[0]]
        tokens = leaves([dims[i] for i in others])
        if value(chosen).ndim == 1:
            total = size_of(fresh(value(chosen).shape)[0])
            choices = (Axis(quotient(total, size_of(tokens)), "k"),)
            own: Dims = ((*tokens, *choices),)
        else:
            choices = fresh((value(chosen).shape[-1],), "k")[0]
            own = (*(dims[i] for i in others), choices)
        for i in others:
            if not self._counts(index[i], broadcast(own, value(index[i]).shape), dims[i]):
                return None
        return self.unique(chosen, broadcast(own, value(chosen).shape), choices)

    def _one_hot(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`one_hot(indices)`, still with its choices apart."""
        if number != ZERO or not self._is_experts(dims[-1]):
            return None
        return Place(op.args["input"], dims[:-1])

    def _equal(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`mask == 0` is true where the mask is zero; `indices == arange(E)` false beside them."""
        source, other = op.args["input"], op.args.get("other")
        if number == ONE and not is_tensor(other) and other in (0, 0.0, False):
            return self.support(source, broadcast(dims, value(source).shape), ZERO)
        count = size_of(self.experts)
        if number != ZERO or not isinstance(count, int):
            return None
        if not (is_tensor(source) and is_tensor(other)):
            return None
        for index, numbers in ((source, other), (other, source)):
            place = Place(index, broadcast(dims, value(index).shape))
            if set(leaves(place.dims)) & set(leaves((self.experts,))):
                continue
            counted = broadcast(dims, value(numbers).shape)
            if not self._counts(numbers, counted, self.experts):
                continue
            return place if are_experts(self.view, index, count) else None
        return None

    def _counts(self, node: Node, dims: Dims, along: Dim) -> bool:
        """Whether a tensor tells the position along one dimension."""
        return is_arange(self.view, node, dims, along)

    def _sum(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """Choices that are added up, each with a support of one expert."""
        found = summed(op, node, dims, ("sum", "any", "amax"))
        if number != ZERO or found is None:
            return None
        source, pulled, axis = found
        place = self.support(source, pulled, number)
        apart = place is None or bool(set(leaves((axis,))) - set(leaves(place.dims)))
        if place is None or apart or isinstance(place, Mask):
            return None
        return self.unique(place.node, place.dims, axis)

    def _contracted(self, op: Op, node: Node, dims: Dims) -> Place | None:
        """A product with one-hot rows, over choices that are added up."""
        found = pull_contraction(op, node, dims)
        sides, inner = [(found.a, found.a_dims), (found.b, found.b_dims)], leaves((found.inner,))
        for side, other in (sides, reversed(sides)):
            place = self.support(*side, ZERO)
            if place is None or isinstance(place, Mask) or not self._is_harmless(*other):
                continue
            if set(inner) <= set(leaves(place.dims)):
                return self.unique(place.node, place.dims, inner)
        return None

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

    def _add(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """A sum with -inf, of which only its own score could make something else."""
        if number != LOWEST or op.args.get("alpha", 1) != 1:
            return None
        found = (self.support(*pair, LOWEST) for pair in pull_pointwise(op, node, dims).items())
        return next((place for place in found if place is not None), None)

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

    def _normalised(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`normalize(weights)`, by a norm over all experts that is no less than a number."""
        dim, least = op.args.get("dim", 1), op.args.get("eps", 1e-12)
        positive = isinstance(least, float) and least > 0 and op.args.get("out") is None
        if number != ZERO or not positive or type(dim) is not int:
            return None
        return self.support(op.args["input"], dims, ZERO) if self._is_experts(dims[dim]) else None

    def _is_harmless(self, node: Node, dims: Dims) -> bool:
        """Whether a factor cannot be infinite, or no number, for an expert alone that was not
        chosen: it is a probability, an integer, the same for all experts, or zero as well. Beside
        a mask a weight that is no number is as good as chosen."""
        if self.masks or not set(leaves(dims)) & set(leaves((self.experts,))):
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

    def _logarithm(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        return self.support(op.args["input"], dims, ZERO) if number == LOWEST else None

    def _softmax(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        dim = op.args.get("dim")
        if number != ZERO or not isinstance(dim, int) or not self._is_experts(dims[dim]):
            return None
        return self.support(op.args["input"], dims, LOWEST)

    # -- conditions

    def _inverted(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`~mask` and `1 - mask`."""
        source: Any = op.args["input"]
        if op.name == "sub":
            one = type(source) in (int, float) and source == 1
            if not one or op.args.get("alpha", 1) != 1 or not is_tensor(op.args["other"]):
                return None
            source = op.args["other"]
        elif op.name == "bitwise_not" and value(node).dtype is not torch.bool:
            return None
        if number not in (ZERO, ONE):
            return None
        return self.support(source, broadcast(dims, value(source).shape), ONE - number)

    def _where(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`where(mask, anything, number)` with a mask that is false elsewhere, or the reverse."""
        for name, elsewhere in (("other", ZERO), ("input", ONE)):
            if not self._is_number(op.args.get(name), number, node):
                continue
            condition = op.args["condition"]
            found = self.support(condition, broadcast(dims, value(condition).shape), elsewhere)
            if found is not None:
                return found
        return None

    def _filled(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`masked_fill(mask, number)` with a mask that is true elsewhere."""
        if not self._is_number(op.args["value"], number, node):
            return None
        mask = op.args["mask"]
        return self.support(mask, broadcast(dims, value(mask).shape), ONE)

    def _compared(self, op: Op, node: Node, dims: Dims, number: Any) -> Place | None:
        """`x != 0`, or `x > 0`, is false where x is zero."""
        other, source = op.args.get("other"), op.args["input"]
        if number != ZERO or is_tensor(other) or other not in (0, 0.0, False):
            return None
        return self.support(source, broadcast(dims, value(source).shape), ZERO)


def summed(
    op: Op, node: Node, dims: Dims, names: Sequence[str] = ("sum",)
) -> tuple[Node, Dims, Dim] | None:
    """The input of a sum over one dimension, its axes, and the axis that is added up."""
    source, dim = op.args.get("input"), op.args.get("dim")
    if isinstance(dim, (list, tuple)) and len(dim) == 1:
        (dim,) = dim
    if op.name not in names or not is_tensor(source) or type(dim) is not int:
        return None
    rank = value(source).ndim
    at = dim % rank
    axis = fresh((value(source).shape[at],), "summed")[0]
    kept = bool(op.args.get("keepdim", False))
    rest = dims[at + 1 :] if kept else dims[at:]
    return source, (*dims[:at], axis, *rest), axis
