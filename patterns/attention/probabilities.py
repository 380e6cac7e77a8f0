"""From p, the operand of the product with v, up to every softmax that it is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Axis, Dims, broadcast, fresh, leaves, resolve
from fuser.graph.effects import dropout_probability
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.graph.twins import twins
from fuser.graph.view import GraphView, Mark

from ..captured import is_cast, loses_nothing
from ..declined import Declined, spelled
from .shift import Shift, read_shift, until_common
from .walk import MAX_NODES, WRONG_AXIS, WRONG_AXIS_HINT, Source, peel


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
        raise Declined(f"{spelled(node)} stands between the softmax and its use", node)

    def _softmax(self, op: Op, node: Node, dims: Dims) -> Source:
        dim = op.args.get("dim")
        self._require_key_axis(dim, node, dims)
        scores, _ = self._unshifted(op.args["input"], dims)
        return Source(node, scores, dims, value(node).dtype)

    def _require_key_axis(self, dim: Any, node: Node, dims: Dims) -> None:
        if isinstance(dim, (list, tuple)) and len(dim) == 1:
            dim = dim[0]
        if not isinstance(dim, int):
            raise Declined("the axis of the softmax is not a constant", node)
        if set(leaves((dims[dim],))) != set(leaves((self.keys,))):
            is_last = dim % len(dims) == len(dims) - 1
            raise Declined(WRONG_AXIS, node, "" if is_last else WRONG_AXIS_HINT)

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
            raise Declined(WRONG_AXIS, node, WRONG_AXIS_HINT)
        source = op.args["input"]
        (joined,) = fresh((value(source).shape[-1],), "joined")
        walk = ProbabilityWalk(self.view, joined)
        (inner, *more) = walk.sources(source, (*dims[:-1], joined))
        if more or inner.sink is not None or inner.dropout or inner.fixed:
            raise Declined("a part of the probabilities is cut out", node)
        if any(kind != "op" or not is_cast(detail[0]) for kind, detail in inner.steps):
            raise Declined("the sink's column is changed before it is dropped", node)
        uncast, _ = walk._unshifted(walk._uncast(inner), inner.dims)
        self.interior |= walk.interior
        scores, sink, sink_dims = self._joined(uncast, dims, at_end)
        return replace(
            inner, scores=scores, dims=dims, sink=sink if sink == "0" else (sink, sink_dims)
        )

    def _uncast(self, source: Source) -> Node:
        """The scores before they are cast to the dtype in which the softmax is computed anyway."""
        node, op = source.scores, self.view.op(source.scores)
        while value(node).dtype == source.dtype and not op.inplace and loses_nothing(op, node):
            self.interior.add(node)
            node = op.args["input"]
            op = self.view.op(node)
        return node

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

    def _unshifted(
        self, node: Node, dims: Dims, *, bounded: bool = False
    ) -> tuple[Node, Shift | None]:
        """Scores without the maximum that was taken away from them, and that maximum."""
        found = read_shift(self.view, node, dims, self.keys, bounded=bounded)
        if found is None:
            return node, None
        self.interior.update((node, *found[1].nodes))
        return found

    def _manual(self, op: Op, node: Node, dims: Dims) -> Source | None:
        """`exp(x) / sum(exp(x))`, `exp(x) / (sum(exp(x)) + more)`, `exp(x - logsumexp(x))`."""
        if op.name == "exp":
            return self._exp_of_difference(op, node, dims)
        top, bottom, inverse = self._fraction(op)
        if top is None or bottom is None:
            return None
        exp = self.view.op(top)
        if exp.name != "exp":
            return None
        found = self._denominator(bottom, broadcast(dims, value(bottom).shape), top, dims)
        if found is None:
            return None
        extra, added, passed = found
        scores, shift = self._unshifted(exp.args["input"], dims, bounded=True)
        sink: Any = None
        if extra is not None:
            sink = self._extra_logit(extra, added, shift, node)
        if shift is not None:
            self._require_sinks(shift, sink, extra, node)
        self.interior.update((top, *passed, *inverse))
        return Source(node, scores, dims, value(node).dtype, sink=sink)

    def _fraction(self, op: Op) -> tuple[Node | None, Node | None, tuple[Node, ...]]:
        """Numerator and denominator of `a / b` or `a * reciprocal(b)`, and the reciprocal."""
        a, b = op.args.get("input"), op.args.get("other")
        if not is_tensor(a) or not is_tensor(b):
            return None, None, ()
        if op.name == "div" and op.args.get("rounding_mode") is None:
            return a, b, ()
        if op.name == "mul":
            for x, y in ((a, b), (b, a)):
                inverse = self.view.op(y)
                if inverse.name == "reciprocal":
                    return x, inverse.args["input"], (y,)
                if inverse.name == "div" and inverse.args["input"] in (1, 1.0):
                    return x, inverse.args["other"], (y,)
        return None, None, ()

    def _denominator(
        self, bottom: Node, below: Dims, top: Node, dims: Dims
    ) -> tuple[Any, Dims, list[Node]] | None:
        """Reads the denominator as `sum(top)` or `sum(top) + extra`; which extra, and the nodes."""
        passed: list[Node] = [bottom]
        extra: Any = None
        added: Dims = ()
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
                added, below = below, broadcast(below, value(node).shape)
            else:
                break
            passed.append(node)
        again = twins(self.view, top, op.args.get("input"))
        if op.name != "sum" or again is None or op.args.get("dtype") is not None:
            return None
        self._require_laid_out(op, node, dims, below)
        return extra, added, [*passed, *again]

    def _require_laid_out(self, op: Op, node: Node, dims: Dims, below: Dims) -> None:
        """A reduction of a tensor with `dims`, over the keys alone, whose result has `below`."""
        dim: Any = op.args.get("dim")
        dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
        self._require_key_axis(dim, node, dims)
        kept = list(dims)
        if op.args.get("keepdim") is True:
            kept[dim] = ()
        else:
            del kept[dim]
        if resolve(kept) != resolve(below):
            raise Declined("the denominator is not laid out as a dimension of its own", node)

    def _is_sum(self, node: Node, top: Node) -> bool:
        while self.view.op(node).kind is Kind.VIEW:
            node = self.view.op(node).args["input"]
        op = self.view.op(node)
        return op.name == "sum" and twins(self.view, top, op.args.get("input")) is not None

    def _require_sinks(self, shift: Shift, sink: Any, reader: Any, node: Node) -> None:
        """The scores may be shifted by their maximum and the sink's logit, by nothing else."""
        known: list[tuple[Node, Dims]] = []
        if isinstance(sink, tuple):
            logit, axes = sink
            known = peel(self.view, logit, axes, reader, values=True)
        if any(until_common(term, known) is None for term in shift.terms):
            raise Declined("the scores lose the maximum with something that is not the sink", node)

    def _extra_logit(self, extra: Any, dims: Dims, shift: Shift | None, node: Node) -> Any:
        """A term `exp(z - shift)` in a sum with `dims` is one more logit: "0", or z with axes."""
        if shift is None and isinstance(extra, (int, float)) and extra == 1:
            return "0"
        if is_tensor(extra):
            exp = self.view.op(extra)
            inner = exp.args.get("input")
            if exp.name == "exp" and is_tensor(inner):
                found = self._logit(inner, shift and shift.node)
                if found is not None:
                    self.interior.update((extra,) if shift is None else (extra, inner))
                    if found == "0":
                        return found
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
            scores, _ = self._unshifted(sub.args["input"], dims)
            return Source(inner, scores, dims, value(inner).dtype)
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
        self._require_laid_out(reduce, lse, dims, below)
        self.interior.update(passed)
        scores, _ = self._unshifted(scores, dims)
        return Source(node, scores, dims, value(node).dtype)


def _linear_in(op: Op, inner: Node) -> bool:
    if op.name in ("mul", "neg") or is_cast(op) or op.name in ("clone", "contiguous", "alias"):
        return True
    return op.name == "div" and op.args.get("input") is inner


def _one_column_less(op: Op, node: Node, rank: int) -> bool | None:
    """Whether the last (True) or first (False) column is cut off; None for anything else."""
    source = value(op.args["input"]).shape[-1]
    if value(node).shape[-1] != source - 1 or value(node).ndim != rank:
        return None
    if op.name == "narrow":
        if op.args.get("dim") not in (-1, rank - 1):
            return None
        return {0: True, 1: False}.get(op.args["start"])
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
