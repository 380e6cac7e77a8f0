"""Places of experts that tokens are sent to: no two tokens may have the same one.

mask      = one_hot(expert of the token)            (T, E)
position  = cumsum(mask, 0) - 1                     how many came before it
kept      = mask * (position < capacity)
combine   = weight * kept * one_hot(position at the expert of the token)       (T, E, C)

`combine` is read as a sum of products. Where a product is not zero, all its factors that are zero
or one are one: these are the facts from which follows what the position is that `one_hot` was
given. Positions that count along all tokens are distinct for each expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from fuser.graph.axes import (
    Axis,
    Dim,
    Dims,
    Unproven,
    broadcast,
    leaves,
    resolve,
    same_size,
    size_of,
)
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.graph.view import GraphView

from ..cuts import cut_of
from .arange import is_arange
from .choices import found_by, reads_as_told
from .copies import COPIES
from .order import WIDE
from .routing import summed
from .terms import MAX_STEPS, WHOLE, Factor, Masks


@dataclass(frozen=True)
class Position:
    """Which number a row has among those that a mask counts.

    Attributes:
        mask: its factors, all zero or one.
        along: axes along which is counted.
        offset: a number.
        before: masks that were counted as a whole before.
    """

    mask: frozenset[Factor]
    along: frozenset[Axis]
    offset: int = 0
    before: frozenset[frozenset[Factor]] = frozenset()


class Places(Masks):
    """Reads places.

    Attributes:
        apart: axes of which each value has places of its own.
    """

    def __init__(self, view: GraphView, experts: Dim, slots: Dim, apart: set[Axis]) -> None:
        super().__init__(view, experts, slots)
        self.apart = apart

    # -- positions

    def position(self, term: frozenset[Factor]) -> Position:
        """The position that decides which place a row has.

        Raises:
            Unproven: it is not known, or there is none.
        """
        slots = [f for f in term if f.axes & set(leaves((self.slots,)))]
        if len(slots) != 1:
            raise Unproven("a place without one position")
        (slot,) = slots
        found = self._slot(slot)
        facts = self.facts(term) - {slot}
        position = self._position(*found, slot.node, facts)
        counted = {a for f in term for a in f.axes}
        beside = counted - set(leaves((self.experts, self.slots))) - self.apart
        if not beside <= position.along or not position.mask <= facts:
            raise Unproven("positions that do not count all rows")
        if not any(set(leaves((self.experts,))) <= f.axes for f in position.mask):
            raise Unproven("positions that are not counted for each expert")
        return position

    def is_slot(self, factor: Factor) -> bool:
        """Whether a factor is one at a row's place alone, and zero at others."""
        return bool(factor.axes & set(leaves((self.slots,))))

    def _slot(self, factor: Factor) -> tuple[Node, Dims]:
        """The positions of which a factor is the one-hot form."""
        node, dims = factor.node, factor.dims
        cut = cut_of(self.view, node)
        if cut is not None and cut.start == 0 and cut.step == 1 and cut.dim == len(dims) - 1:
            if leaves(dims[-1:]) == leaves((self.slots,)):
                node = cut.source
        op = self.view.op(node)
        if op.name == "one_hot" and leaves(dims[-1:]) == leaves((self.slots,)):
            return op.args["input"], dims[:-1]
        if op.name == "eq":
            inputs = list(pull_pointwise(op, node, dims).items())
            for i, (numbers, own) in enumerate(inputs):
                others = inputs[:i] + inputs[i + 1 :]
                if len(others) == 1 and is_arange(self.view, numbers, own, self.slots):
                    return others[0]
        raise Unproven("a place that is not told by a position")

    def _position(self, node: Node, dims: Dims, reader: Node, facts: frozenset[Factor]) -> Position:
        self._steps += 1
        if self._steps > MAX_STEPS or self.view.is_written(node, reader):
            raise Unproven("a position in too many steps, or one that is written to")
        if value(node).dtype not in WIDE:
            raise Unproven("a position in a dtype that rounds")
        op, dims = self.view.op(node), resolve(dims)
        source: Any = op.args.get("input")
        again: Callable[[Node, Dims], Position] = lambda n, d: self._position(n, d, node, facts)  # noqa: E731
        if op.kind is Kind.VIEW:
            return again(*pull_view(op, node, dims))
        if op.name in (*COPIES, "to", *WHOLE) and is_tensor(source):
            return again(source, dims)
        if op.name == "cumsum":
            return self._counted(op, node, dims, facts)
        if op.name in ("add", "sub") and op.args.get("alpha", 1) == 1:
            return self._moved(op, node, dims, facts)
        if op.name == "mul":
            return self._masked(list(pull_pointwise(op, node, dims).items()), node, facts)
        if op.name in ("sum", "amax"):
            inner = summed(op, node, dims, ("sum", "amax"))
            if inner is not None:
                return self._at_expert(inner[0], inner[1], inner[2], node, facts)
        if reads_as_told(self.view, op):
            return self._gathered(op, node, dims, facts)
        if op.name in ("where", "masked_fill") and is_tensor(source):
            return self._chosen(op, node, dims, facts)
        if op.name in ("clamp", "clamp_max", "clamp_min"):
            return self._clamped(op, node, dims, facts)
        largest = found_by(self.view, node, 0)
        if largest is not None and largest.name == "max":
            inner = summed(Op(largest.kind, "sum", largest.args), node, dims)
            if inner is not None:
                return self._at_expert(inner[0], inner[1], inner[2], node, facts)
        raise Unproven("a position that is not counted")

    def _counted(self, op: Op, node: Node, dims: Dims, facts: frozenset[Factor]) -> Position:
        """`cumsum(mask)` is distinct, and grows, where the mask is one."""
        source, dim = op.args["input"], op.args.get("dim")
        terms = self.terms(source, dims, node)
        if type(dim) is not int or len(terms) != 1 or not terms[0] <= facts:
            raise Unproven("positions that count something else than who is sent")
        return Position(terms[0], frozenset(leaves((dims[dim],))))

    def _moved(self, op: Op, node: Node, dims: Dims, facts: frozenset[Factor]) -> Position:
        """A position and a number, what its own row counts, or how many another mask counts."""
        source: Any = op.args.get("input")
        other: Any = op.args.get("other")
        sign = -1 if op.name == "sub" else 1
        if type(other) is int or type(source) is int:
            if type(source) is int and sign < 0:
                raise Unproven("positions that count downwards")
            tensor: Any = source if type(other) is int else other
            number: int = other if type(other) is int else source
            found = self._position(tensor, broadcast(dims, value(tensor).shape), node, facts)
            return replace(found, offset=found.offset + sign * number)
        pairs = [(n, broadcast(dims, value(n).shape)) for n in (source, other)]
        for i, (counted, own) in enumerate(pairs):
            before = None if sign < 0 else self._whole(counted, own, node, facts)
            if before is None:
                continue
            found = self._position(*pairs[1 - i], node, facts)
            return replace(found, before=found.before | {before})
        if sign < 0 and self._holds(*pairs[1], node, facts):
            found = self._position(*pairs[0], node, facts)
            return replace(found, offset=found.offset - 1)
        raise Unproven("positions with something added that is not known")

    def _whole(
        self, node: Node, dims: Dims, reader: Node, facts: frozenset[Factor]
    ) -> frozenset[Factor] | None:
        """The mask of which a tensor counts all rows, for each expert."""
        while self.view.op(node).kind is Kind.VIEW or self.view.op(node).name in WHOLE:
            op = self.view.op(node)
            node, dims = (
                pull_view(op, node, dims) if op.kind is Kind.VIEW else (op.args["input"], dims)
            )
        op = self.view.op(node)
        inner = summed(op, node, dims)
        if inner is None or self.view.is_written(node, reader):
            return None
        rows = self._rows(facts)
        if len(rows) != 1 or not same_size(size_of(inner[2]), size_of(rows)):
            return None
        named = tuple(rows if d == inner[2] else d for d in inner[1])
        terms = self.terms(inner[0], named, node)
        return terms[0] if len(terms) == 1 else None

    def _rows(self, facts: frozenset[Factor]) -> Dim:
        """The axes of rows that facts are about."""
        beside = set(leaves((self.experts, self.slots))) | self.apart
        found: dict[Axis, None] = {}
        for fact in facts:
            found.update(dict.fromkeys(a for a in leaves(fact.dims) if a not in beside))
        return tuple(found)

    def _masked(
        self, inputs: Sequence[tuple[Node, Dims]], node: Node, facts: frozenset[Factor]
    ) -> Position:
        """A position times facts."""
        for i, pair in enumerate(inputs):
            others = [other for j, other in enumerate(inputs) if j != i]
            if others and all(self._holds(*other, node, facts) for other in others):
                return self._position(*pair, node, facts)
        raise Unproven("a position times what is not known")

    def _holds(self, node: Node, dims: Dims, reader: Node, facts: frozenset[Factor]) -> bool:
        """Whether a tensor is certainly one, from facts."""
        terms = self.terms(node, dims, reader)
        return len(terms) == 1 and terms[0] <= facts

    def _at_expert(
        self, node: Node, dims: Dims, axis: Dim, reader: Node, facts: frozenset[Factor]
    ) -> Position:
        """The position at the expert of a row: all others are multiplied with zero."""
        if not same_size(size_of(axis), size_of(self.experts)):
            raise Unproven("positions that are added up over something else than experts")
        own = tuple(self.experts if d == axis else d for d in resolve(dims))
        if not any(self.is_one_expert(f) for f in self._masks(node, own, reader) & facts):
            raise Unproven("positions of several experts are added up")
        return self._position(node, own, reader, facts)

    def _masks(self, node: Node, dims: Dims, reader: Node) -> frozenset[Factor]:
        """Factors of a product of masks and a position."""
        op = self.view.op(node)
        if op.kind is Kind.VIEW:
            return self._masks(*pull_view(op, node, dims), node)
        if op.name != "mul":
            return frozenset()
        found: set[Factor] = set()
        for pair in pull_pointwise(op, node, dims).items():
            terms = self.terms(*pair, node)
            found |= terms[0] if len(terms) == 1 else set()
        return frozenset(found)

    def _gathered(self, op: Op, node: Node, dims: Dims, facts: frozenset[Factor]) -> Position:
        """The position at the expert that a fact is the one-hot form of."""
        source, at = op.args["input"], op.args["dim"] % len(dims)
        index, own = op.args["index"], broadcast(dims, value(op.args["index"]).shape)
        for fact in facts:
            given = self.one_hot(fact)
            if given is None or not self.is_one_expert(fact):
                continue
            root = _past_views(self.view, index, own)
            if root == _past_views(self.view, *given) and not self.view.is_written(root[0], node):
                whole = (*dims[:at], self.experts, *dims[at + 1 :])
                return self._position(source, whole, node, facts)
        raise Unproven("positions that are gathered at another expert")

    def _chosen(self, op: Op, node: Node, dims: Dims, facts: frozenset[Factor]) -> Position:
        """A position where a fact holds, and something else where not."""
        source = op.args["input"]
        own = broadcast(dims, value(source).shape)
        if op.name == "where":
            condition = op.args["condition"]
            if self._holds(condition, broadcast(dims, value(condition).shape), node, facts):
                return self._position(source, own, node, facts)
        mask = op.args.get("mask")
        if is_tensor(mask) and self.view.op(mask).name in ("bitwise_not", "logical_not"):
            condition = self.view.op(mask).args["input"]
            if self._holds(condition, broadcast(dims, value(condition).shape), mask, facts):
                return self._position(source, own, node, facts)
        raise Unproven("positions that something else stands for")

    def _clamped(self, op: Op, node: Node, dims: Dims, facts: frozenset[Factor]) -> Position:
        """A position that a fact says is below the limit."""
        source = op.args["input"]
        low = op.args.get("min", None if op.name != "clamp_min" else 0)
        high = op.args.get("max")
        if low is not None and low != 0:
            raise Unproven("positions that are clamped")
        if high is not None and not any(self._bounds(fact, source, dims, high) for fact in facts):
            raise Unproven("positions that are clamped")
        found = self._position(source, dims, node, facts)
        if low == 0 and found.offset < -1:  # counted from one on
            raise Unproven("positions that are clamped")
        return found

    def _bounds(self, fact: Factor, node: Node, dims: Dims, high: Any) -> bool:
        op = self.view.op(fact.node)
        bound = op.args.get("other")
        if op.name not in ("lt", "le") or type(bound) is not int or type(high) is not int:
            return False
        given = _past_views(self.view, op.args["input"], fact.dims)
        largest = bound - 1 if op.name == "lt" else bound
        same = given == _past_views(self.view, node, dims)
        return largest <= high and same and not self.view.is_written(given[0], fact.node)

    # -- together

    def prove(self, terms: Sequence[frozenset[Factor]]) -> None:
        """No two rows have the same place.

        Raises:
            Unproven: that is not known.
        """
        found = sorted((self.position(t) for t in terms), key=lambda p: len(p.before))
        seen: frozenset[frozenset[Factor]] = frozenset()
        for position in found:
            if position.before != seen or position.offset != found[0].offset:
                raise Unproven("two choices may have the same place")
            if position.along != found[0].along:
                raise Unproven("positions that count different rows")
            seen |= {position.mask}
        if len(seen) != len(found):
            raise Unproven("two choices may have the same place")


def _past_views(view: GraphView, node: Node, dims: Dims) -> tuple[Node, Dim]:
    """What a node is a view of, and its axes in order."""
    op = view.op(node)
    while op.kind is Kind.VIEW or op.name in ("long", "int") or op.name in COPIES:
        node, dims = pull_view(op, node, dims) if op.kind is Kind.VIEW else (op.args["input"], dims)
        op = view.op(node)
    return node, leaves(dims)


def parts(axes: Dim) -> Iterator[tuple[Dim, Dim]]:
    """Every axis alone, and the others."""
    for i, axis in enumerate(axes):
        yield (axis,), (*axes[:i], *axes[i + 1 :])
