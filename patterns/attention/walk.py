"""Walk up from `p @ v` to the products of q and k, carrying axes.

    contract(q, k) -> score program -> softmax -> probability program -> contract(p, v)

Two walks: `ProbabilityWalk` from the operand p up to every softmax, `ScoreWalk` from the input of
one softmax up to its contractions. Both record what they passed (`interior`), what they captured,
and the pointwise programs; each step proves which axes it is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Unproven, broadcast, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.program import ProgramBuilder
from fuser.graph.pull import (
    Contraction,
    is_contraction,
    pull_contraction,
    pull_pointwise,
    pull_view,
)
from fuser.graph.view import GraphView, Mark, draws, dropout_probability

_WRONG_AXIS = "the softmax runs over another axis than the one that is contracted with v"
MAX_NODES = 256
"""Longest score program considered; keeps matching linear in the size of the graph."""


class Declined(Exception):
    """Ends a walk with the reason and the node."""

    def __init__(self, reason: str, node: Node, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.node, self.hint = reason, node, hint


@dataclass
class Captured:
    """Tensors that a program reads, each once for each arrangement."""

    operands: list[tuple[Node, Dims]] = field(default_factory=list)

    def add(self, node: Node, dims: Dims) -> str:
        dims = resolve(dims)
        for i, (known, axes) in enumerate(self.operands):
            if known is node and resolve(axes) == dims:
                return f"c{i}"
        self.operands.append((node, dims))
        return f"c{len(self.operands) - 1}"


class Inputs:
    """Program nodes for captured tensors: one placeholder a name."""

    def __init__(self, builder: ProgramBuilder, captured: Captured) -> None:
        self.builder, self.captured = builder, captured
        self._nodes: dict[str, Node] = {}

    def __call__(self, node: Node, dims: Dims) -> Node:
        name = self.captured.add(node, dims)
        if name not in self._nodes:
            self._nodes[name] = self.builder.input(name)
        return self._nodes[name]


@dataclass
class Source:
    """One softmax and the way from it to p: its scores, dtype, sink and probability steps."""

    softmax: Node
    scores: Node
    dims: Dims
    dtype: torch.dtype
    steps: tuple[tuple[str, Any], ...] = ()
    """Applied in order: ("op", (op, node, dims by input)), ("neg", None)."""
    sink: tuple[Node, Dims] | str | None = None
    dropout: float = 0.0
    fixed: tuple[tuple[Axis, int], ...] = ()
    """Axes of the softmax at which p is one index: a part of its heads."""


class ProbabilityWalk:
    """From p up to every softmax whose sum, with linear coefficients, it is."""

    def __init__(self, view: GraphView, keys: tuple[Axis, ...]) -> None:
        self.view, self.keys = view, keys
        self.interior: set[Node] = set()

    def sources(self, node: Node, dims: Dims) -> list[Source]:
        """The softmaxes behind p.

        Raises:
            Declined: with the first fact that could not be proved.
        """
        if len(self.interior) > MAX_NODES:
            raise Declined("more than 256 operators between the softmax and its use", node)
        op = self.view.op(node)
        self.interior.add(node)
        if op.kind is Kind.SOFTMAX:
            return [self._softmax(op, node, dims)]
        if op.kind is Kind.DROPOUT:
            return self._dropout(op, node, dims)
        if op.kind is Kind.VIEW:
            return self.sources(*pull_view(op, node, dims))
        if op.kind is Kind.SLICE:
            return self._slice(op, node, dims)
        if op.kind is Kind.POINTWISE:
            manual = self._manual(op, node, dims)
            if manual is not None:
                return [manual]
            return self._pointwise(op, node, dims)
        raise Declined(f"{_spelled(node)} stands between the softmax and its use", node)

    def _softmax(self, op: Op, node: Node, dims: Dims) -> Source:
        dim = op.args.get("dim")
        self._require_key_axis(dim, node, dims)
        scores = op.args["input"]
        scores, _ = self._strip_shift(scores, dims)
        return Source(node, scores, dims, value(node).dtype)

    def _require_key_axis(self, dim: Any, node: Node, dims: Dims) -> None:
        if isinstance(dim, (list, tuple)) and len(dim) == 1:
            dim = dim[0]
        if not isinstance(dim, int):
            raise Declined("the axis of the softmax is not a constant", node)
        if set(leaves((dims[dim],))) != set(leaves((self.keys,))):
            raise Declined(_WRONG_AXIS, node)

    def _dropout(self, op: Op, node: Node, dims: Dims) -> list[Source]:
        below = self.sources(op.args["input"], dims)
        probability = dropout_probability(op)
        if probability == 0:
            return below
        if len(below) > 1 or below[0].dropout:
            raise Declined("dropout of a sum of probabilities, or dropout twice", node)
        if not 0 < probability < 1:
            raise Declined("the probability of the dropout is not a constant below 1", node)
        return [replace(below[0], dropout=probability)]

    def _pointwise(self, op: Op, node: Node, dims: Dims) -> list[Source]:
        pulled = pull_pointwise(op, node, dims)
        probs = [n for n in pulled if self.view.marks[n] & Mark.PROBS]
        if len(probs) == 2 and op.name in ("add", "sub") and op.args.get("alpha", 1) == 1:
            first = self.sources(op.args["input"], pulled[op.args["input"]])
            second = self.sources(op.args["other"], pulled[op.args["other"]])
            if op.name == "sub":
                second = [replace(s, steps=(*s.steps, ("neg", None))) for s in second]
            return first + second
        if len(probs) != 1:
            raise Declined("probabilities are combined with each other", node)
        (inner,) = probs
        below = self.sources(inner, pulled[inner])
        if len(below) > 1 and not _linear_in(op, inner):
            raise Declined("a sum of probabilities goes through a non-linear operator", node)
        step = ("op", (op, node, pulled, inner))
        return [replace(s, steps=(*s.steps, step)) for s in below]

    def _slice(self, op: Op, node: Node, dims: Dims) -> list[Source]:
        selected = _selected_axis(op, dims)
        if selected is None:
            return [self._sink_slice(op, node, dims)]
        position, index = selected
        source = op.args["input"]
        (axis,) = fresh((value(source).shape[position],), "selected")[0] or (None,)
        if axis is None:
            return self.sources(source, (*dims[:position], (), *dims[position:]))
        below = self.sources(source, (*dims[:position], (axis,), *dims[position:]))
        return [replace(s, fixed=((axis, index), *s.fixed)) for s in below]

    def _sink_slice(self, op: Op, node: Node, dims: Dims) -> Source:
        """`softmax(cat([scores, sink]))[..., :-1]`: one more logit in the denominator.

        The joined tensor has an axis of its own, of one more position than there are keys.
        """
        at_end = _one_column_less(op, node, len(dims))
        if at_end is None:
            raise Declined("a part of the probabilities is cut out", node)
        if set(leaves((dims[-1],))) != set(leaves((self.keys,))):
            raise Declined(_WRONG_AXIS, node)
        source = op.args["input"]
        (joined,) = fresh((value(source).shape[-1],), "joined")
        walk = ProbabilityWalk(self.view, joined)
        (inner, *more) = walk.sources(source, (*dims[:-1], joined))
        if more or inner.sink is not None or inner.dropout or inner.fixed:
            raise Declined("a part of the probabilities is cut out", node)
        if any(kind != "op" or not is_cast(detail[0]) for kind, detail in inner.steps):
            raise Declined("the sink's column is changed before it is dropped", node)
        self.interior |= walk.interior
        scores, sink, sink_dims = self._joined(inner.scores, dims, at_end)
        return replace(inner, scores=scores, dims=dims, sink=sink if sink == "0" else (sink, sink_dims))

    def _joined(self, node: Node, dims: Dims, at_end: bool) -> tuple[Node, Any, Dims]:
        """Reads `cat([scores, column])`, or a padding with zeros, as scores and a sink."""
        op = self.view.op(node)
        rank = len(dims)
        if op.name == "pad" and op.args.get("mode", "constant") == "constant":
            if op.args.get("value") in (None, 0, 0.0) and tuple(op.args["pad"]) == (
                (0, 1) if at_end else (1, 0)
            ):
                self.interior.add(node)
                return op.args["input"], "0", ()
        tensors = op.args.get("tensors", ())
        if op.kind is not Kind.CAT or len(tensors) != 2 or op.args.get("dim", 0) % rank != rank - 1:
            raise Declined("the probabilities lose a column that is not a sink", node)
        scores, sink = tensors if at_end else (tensors[1], tensors[0])
        if value(sink).shape[-1] != 1:
            raise Declined("the sink has more than one column, or stands on the other side", node)
        self.interior.add(node)
        return scores, sink, (*broadcast(dims[:-1], value(sink).shape[:-1]), ())

    def _strip_shift(self, node: Node, dims: Dims) -> tuple[Node, Node | None]:
        """`x - r` is `x` to a softmax where r is the same for all keys.

        Returns x and r; what computes r from x becomes part of the region.
        """
        op = self.view.op(node)
        shift = op.args.get("other")
        shifted = op.args.get("input")
        if op.name != "sub" or op.args.get("alpha", 1) != 1 or not is_tensor(shifted):
            return node, None
        if not is_tensor(shift) or value(shifted).shape != value(node).shape:
            return node, None
        if set(leaves(broadcast(dims, value(shift).shape))) & set(leaves((self.keys,))):
            return node, None
        self.interior.add(node)
        self.interior.update(self._between(shifted, shift))
        return shifted, shift

    def _between(self, source: Node, target: Node) -> list[Node]:
        """The nodes on paths from `source` to `target`, the latter included if there is a path."""
        first = self.view.order[source]
        reaches: dict[Node, bool] = {source: True}
        stack = [target]
        while stack and len(reaches) < MAX_NODES:
            node = stack[-1]
            if node in reaches:
                stack.pop()
                continue
            later = [n for n in node.all_input_nodes if self.view.order[n] >= first]
            unknown = [n for n in later if n not in reaches]
            if unknown:
                stack.extend(unknown)
                continue
            reaches[node] = any(reaches[n] for n in later)
            stack.pop()
        return [n for n, found in reaches.items() if found and n is not source]

    def _manual(self, op: Op, node: Node, dims: Dims) -> Source | None:
        """`exp(x) / sum(exp(x))`, with one more term in the sum or not, and `exp(x - logsumexp(x))`."""
        if op.name == "exp":
            return self._exp_of_difference(op, node, dims)
        top, bottom = self._fraction(op)
        if top is None or bottom is None:
            return None
        exp = self.view.op(top)
        if exp.name != "exp":
            return None
        found = self._denominator(bottom, broadcast(dims, value(bottom).shape), top, dims)
        if found is None:
            return None
        extra, passed = found
        scores, shift = self._strip_shift(exp.args["input"], dims)
        sink: Any = None
        if extra is not None:
            sink = self._extra_logit(extra, shift, scores, dims, node)
        self.interior.update((top, *passed))
        return Source(node, scores, dims, value(node).dtype, sink=sink)

    def _fraction(self, op: Op) -> tuple[Node | None, Node | None]:
        """Numerator and denominator of `a / b` or `a * reciprocal(b)`."""
        a, b = op.args.get("input"), op.args.get("other")
        if not is_tensor(a) or not is_tensor(b):
            return None, None
        if op.name == "div" and op.args.get("rounding_mode") is None:
            return a, b
        if op.name == "mul":
            for x, y in ((a, b), (b, a)):
                inverse = self.view.op(y)
                if inverse.name == "reciprocal":
                    self.interior.add(y)
                    return x, inverse.args["input"]
                if inverse.name == "div" and inverse.args["input"] in (1, 1.0):
                    self.interior.add(y)
                    return x, inverse.args["other"]
        return None, None

    def _denominator(
        self, bottom: Node, below: Dims, top: Node, dims: Dims
    ) -> tuple[Any, list[Node]] | None:
        """Reads the denominator as `sum(top)` or `sum(top) + extra`; which extra, and the nodes."""
        passed: list[Node] = [bottom]
        extra: Any = None
        node = bottom
        while True:
            op = self.view.op(node)
            if op.kind is Kind.VIEW:
                node, below = pull_view(op, node, below)
            elif op.name == "add" and op.args.get("alpha", 1) == 1 and extra is None:
                a, b = op.args["input"], op.args["other"]
                if is_tensor(a) and self._is_sum(a, top):
                    node, extra = a, b
                elif is_tensor(b) and self._is_sum(b, top):
                    node, extra = b, a
                else:
                    return None
                below = broadcast(below, value(node).shape)
            else:
                break
            passed.append(node)
        if op.name != "sum" or op.args.get("input") is not top or op.args.get("dtype") is not None:
            return None
        dim = op.args.get("dim")
        dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
        self._require_key_axis(dim, node, dims)
        kept = list(dims)
        if op.args.get("keepdim") is True:
            kept[dim] = ()
        else:
            del kept[dim]
        if resolve(kept) != resolve(below):
            raise Declined("the denominator is not laid out as a dimension of its own", node)
        return extra, passed

    def _is_sum(self, node: Node, top: Node) -> bool:
        while self.view.op(node).kind is Kind.VIEW:
            node = self.view.op(node).args["input"]
        op = self.view.op(node)
        return op.name == "sum" and op.args.get("input") is top

    def _extra_logit(
        self, extra: Any, shift: Node | None, scores: Node, dims: Dims, node: Node
    ) -> Any:
        """One more term `exp(z - shift)` in the sum is one more logit z: "0", or z with its axes."""
        if shift is None and isinstance(extra, (int, float)) and extra == 1:
            return "0"
        if is_tensor(extra):
            exp = self.view.op(extra)
            inner = exp.args.get("input")
            if exp.name == "exp" and is_tensor(inner):
                found = self._logit(inner, shift)
                if found is not None:
                    self.interior.update((extra, *self._between(scores, extra)))
                    if found == "0":
                        return found
                    if shift is not None:
                        self.interior.add(inner)
                    axes = broadcast(dims, value(found).shape)
                    if not set(leaves(axes)) & set(leaves((self.keys,))):
                        return (found, axes)
        raise Declined("the denominator has a term that is not one more logit", node)

    def _logit(self, inner: Node, shift: Node | None) -> Any:
        """z of `z - shift`, `-shift`, or of z alone where nothing was shifted."""
        if shift is None:
            return inner
        op = self.view.op(inner)
        if op.name == "neg" and op.args["input"] is shift:
            return "0"
        if op.name == "sub" and op.args["other"] is shift and op.args.get("alpha", 1) == 1:
            return op.args["input"] if is_tensor(op.args["input"]) else None
        return None

    def _exp_of_difference(self, op: Op, node: Node, dims: Dims) -> Source | None:
        inner = op.args["input"]
        sub = self.view.op(inner)
        if sub.name == "log_softmax":
            self._require_key_axis(sub.args.get("dim"), inner, dims)
            self.interior.add(inner)
            return Source(inner, sub.args["input"], dims, value(inner).dtype)
        if sub.name != "sub" or sub.args.get("alpha", 1) != 1:
            return None
        scores, lse = sub.args["input"], sub.args["other"]
        if not is_tensor(lse) or not is_tensor(scores):
            return None
        below = broadcast(dims, value(lse).shape)
        passed = [inner, lse]
        while (reduce := self.view.op(lse)).kind is Kind.VIEW:
            lse, below = pull_view(reduce, lse, below)
            passed.append(lse)
        if reduce.name != "logsumexp" or reduce.args.get("input") is not scores:
            return None
        dim = reduce.args.get("dim")
        dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
        self._require_key_axis(dim, lse, dims)
        kept = list(dims)
        if reduce.args.get("keepdim") is True:
            kept[dim] = ()
        else:
            del kept[dim]
        if resolve(kept) != resolve(below):
            raise Declined("the denominator is not laid out as a dimension of its own", lse)
        self.interior.update(passed)
        return Source(node, scores, dims, value(node).dtype)


class ScoreWalk:
    """From the input of a softmax up to the contractions of q and k."""

    def __init__(
        self, view: GraphView, keys: tuple[Axis, ...], captured: Captured
    ) -> None:
        self.view, self.keys = view, keys
        self.builder = ProgramBuilder()
        self.inputs = Inputs(self.builder, captured)
        self.interior: set[Node] = set()
        self.contractions: list[tuple[Node, Contraction]] = []
        self._seen: dict[Node, tuple[Dims, Node | None]] = {}

    def run(self, node: Node, dims: Dims) -> Node:
        result = self._visit(node, dims)
        if result is None or not self.contractions:
            blocking = self._blocking(node)
            what = f": {_spelled(blocking)} comes first" if blocking is not None else ""
            raise Declined(f"no product of q and k was found behind the softmax{what}", node)
        return result

    def _visit(self, node: Node, dims: Dims) -> Node | None:
        """The program's node for a value, or None where no contraction is behind it."""
        dims = resolve(dims)
        if node in self._seen:
            before, known = self._seen[node]
            if resolve(before) != dims and known is not None:
                raise Declined("the scores are combined with a rearranged copy of themselves", node)
            if known is not None:
                return known
        if not self.view.marks[node] & Mark.SCORES or len(self._seen) > MAX_NODES:
            return None
        op = self.view.op(node)
        result: Node | None = None
        if is_contraction(op):
            result = self._contraction(op, node, dims)
        elif op.kind is Kind.POINTWISE:
            result = self._pointwise(op, node, dims)
        elif op.kind is Kind.VIEW:
            source, pulled = pull_view(op, node, dims)
            result = self._visit(source, pulled)
        elif op.kind is Kind.DROPOUT and not draws(node, op):
            result = self._visit(op.args["input"], dims)
        self._seen[node] = (dims, result)
        if result is not None:
            self.interior.add(node)
        return result

    def _pointwise(self, op: Op, node: Node, dims: Dims) -> Node | None:
        pulled = pull_pointwise(op, node, dims)
        mapped = {source: self._visit(source, axes) for source, axes in pulled.items()}
        if all(result is None for result in mapped.values()):
            return None
        complete = {
            source: result if result is not None else self.inputs(source, pulled[source])
            for source, result in mapped.items()
        }
        self._scalars(op, node, complete)
        return self.builder.pointwise(op, node, complete)

    def _scalars(self, op: Op, node: Node, complete: dict[Node, Node]) -> None:
        for source in node.all_input_nodes:
            if source not in complete and not is_tensor(source):
                complete[source] = self.inputs(source, ())

    def _contraction(self, op: Op, node: Node, dims: Dims) -> Node | None:
        product = pull_contraction(op, node, dims)
        keys = set(leaves((self.keys,)))
        in_a, in_b = set(leaves(product.a_dims)) & keys, set(leaves(product.b_dims)) & keys
        if in_a and in_b:
            return None  # both operands hold keys: not q times k
        if (in_a or in_b) != keys:
            return None  # a relative-position product over a part of the keys: captured whole
        if in_a:
            product = Contraction(
                product.b, product.b_dims, product.a, product.a_dims, product.inner
            )
        others = set(leaves(product.a_dims)) - set(leaves((product.inner,)))
        if not others - set(leaves(product.b_dims)):
            rows = [d for d in resolve(dims) if set(d) - keys]
            if rows and not others:
                return None  # nothing but keys on both sides: a bias, not q times k
        index = len(self.contractions)
        self.contractions.append((node, product))
        result = self.builder.input(f"s{index}")
        if op.name == "baddbmm":
            result = self._baddbmm(op, result, dims)
        return result

    def _baddbmm(self, op: Op, product: Node, dims: Dims) -> Node:
        alpha, beta = op.args.get("alpha", 1), op.args.get("beta", 1)
        if alpha != 1:
            product = self.builder.call(torch.mul, product, self._scalar(alpha))
        if isinstance(beta, (int, float)) and beta == 0:
            return product
        bias = op.args["input"]
        axes = broadcast(dims, value(bias).shape)
        added = self._visit(bias, axes)
        added = added if added is not None else self.inputs(bias, axes)
        if beta != 1:
            added = self.builder.call(torch.mul, added, self._scalar(beta))
        return self.builder.call(torch.add, added, product)

    def _scalar(self, scalar: Any) -> Any:
        return self.inputs(scalar, ()) if isinstance(scalar, Node) else scalar

    def _blocking(self, node: Node) -> Node | None:
        """The first node above that neither walk rule knows: what to name in the report."""
        for _ in range(MAX_NODES):
            op = self.view.op(node)
            if op.kind is Kind.CONTRACT:
                return None
            if op.kind not in (Kind.POINTWISE, Kind.VIEW, Kind.DROPOUT):
                return node
            sources = [n for n in node.all_input_nodes if is_tensor(n)]
            scored = [n for n in sources if self.view.marks[n] & Mark.SCORES]
            if not scored and not sources:
                return node
            node = (scored or sources)[0]
        return None


def probability_program(
    source: Source, captured: Captured
) -> tuple[ProgramBuilder, Node]:
    """The steps between one softmax and p as a program with the input `p`."""
    builder = ProgramBuilder()
    inputs = Inputs(builder, captured)
    current = builder.input("p")
    for kind, detail in source.steps:
        if kind == "neg":
            current = builder.call(torch.neg, current)
            continue
        op, node, pulled, inner = detail
        mapped: dict[Node, Node] = {inner: current}
        for other, dims in pulled.items():
            if other is not inner:
                mapped[other] = inputs(other, dims)
        for other in node.all_input_nodes:
            if other not in mapped and not is_tensor(other):
                mapped[other] = inputs(other, ())
        current = builder.pointwise(op, node, mapped)
    return builder, current


def peel(view: GraphView, node: Node, dims: Dims) -> list[tuple[Node, Dims]]:
    """An operand and everything above it that it is only a view, or a copy, of; nearest first."""
    found = [(node, dims)]
    for _ in range(32):
        op = view.op(node)
        if op.kind is Kind.VIEW and not op.inplace:
            try:
                node, dims = pull_view(op, node, dims)
            except Unproven:
                break
        elif op.kind is Kind.POINTWISE and (_is_copy(op, node) or _widens(op, node)):
            node = op.args["input"]
        else:
            break
        found.append((node, dims))
    return [(n, resolve(d)) for n, d in found]


def _is_copy(op: Op, node: Node) -> bool:
    if op.name in ("clone", "contiguous", "alias"):
        return True
    source = op.args.get("input")
    same = is_tensor(source) and value(source).dtype == value(node).dtype
    return is_cast(op) and same and value(source).device == value(node).device


def _widens(op: Op, node: Node) -> bool:
    """A cast that loses nothing."""
    source = op.args.get("input")
    return (
        is_cast(op)
        and is_tensor(source)
        and value(source).dtype in (torch.bfloat16, torch.float16)
        and value(node).dtype is torch.float32
        and value(source).device == value(node).device
    )


def is_cast(op: Op) -> bool:
    return op.name in ("to", "type_as", "type", "float", "half", "bfloat16")


def _linear_in(op: Op, inner: Node) -> bool:
    if op.name in ("mul", "neg") or is_cast(op) or op.name in ("clone", "contiguous", "alias"):
        return True
    return op.name == "div" and op.args.get("input") is inner


def _one_column_less(op: Op, node: Node, rank: int) -> bool | None:
    """Whether the last (True) or first (False) column of the last dimension is cut off; else None."""
    source = value(op.args["input"]).shape[-1]
    if value(node).shape[-1] != source - 1 or value(node).ndim != rank:
        return None
    if op.name == "narrow":
        if op.args.get("dim") not in (-1, rank - 1):
            return None
        return {0: True, 1: False}.get(op.args.get("start"))
    index = op.args["index"]
    parts = index if isinstance(index, tuple) else (index,)
    if not isinstance(parts[-1], slice) or (Ellipsis not in parts and len(parts) != rank):
        return None
    if any(isinstance(p, slice) and p != slice(None) for p in parts[:-1]):
        return None
    if any(not isinstance(p, slice) and p is not Ellipsis for p in parts):
        return None
    last = parts[-1]
    if last.step not in (None, 1):
        return None
    return last.start in (None, 0)


def _selected_axis(op: Op, dims: Dims) -> tuple[int, int] | None:
    """Position and index of the one dimension that an integer index removes, or None."""
    if op.name != "getitem":
        return None
    index = op.args["index"]
    parts = index if isinstance(index, tuple) else (index,)
    numbers = [p for p in parts if isinstance(p, int) and not isinstance(p, bool)]
    slices = [p for p in parts if isinstance(p, slice) and p == slice(None)]
    dots = [p for p in parts if p is Ellipsis]
    if len(numbers) != 1 or len(numbers) + len(slices) + len(dots) != len(parts) or len(dots) > 1:
        return None
    at = next(i for i, p in enumerate(parts) if p is numbers[0])
    if dots and parts.index(Ellipsis) < at:
        at = len(dims) + 1 - (len(parts) - at)
    size = value(op.args["input"]).shape[at]
    return (at, numbers[0] % size) if isinstance(size, int) else None


def _spelled(node: Node) -> str:
    name = getattr(node.target, "__name__", None) or str(node.target)
    return f"`{name}`"


