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

from fuser.graph.axes import Axis, Dims, Unproven, broadcast, leaves, resolve
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
            return [self._sink_slice(op, node, dims)]
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
        if dim in (-1, len(dims) - 1):
            scores = self._strip_shift(scores)
        return Source(node, scores, dims, value(node).dtype)

    def _require_key_axis(self, dim: Any, node: Node, dims: Dims) -> None:
        if isinstance(dim, (list, tuple)) and len(dim) == 1:
            dim = dim[0]
        if not isinstance(dim, int):
            raise Declined("the axis of the softmax is not a constant", node)
        if set(leaves((dims[dim],))) != set(leaves((self.keys,))):
            raise Declined(
                "the softmax runs over another axis than the one that is contracted with v", node
            )

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
        pulled = pull_pointwise(node, dims)
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

    def _sink_slice(self, op: Op, node: Node, dims: Dims) -> Source:
        """`softmax(cat([scores, sink]))[..., :-1]`: one more logit in the denominator."""
        source = op.args["input"]
        rank = len(dims)
        if not _drops_last(op, node, rank):
            raise Declined("a part of the probabilities is cut out", node)
        inner, path = source, [source]
        while self.view.op(inner).kind is Kind.POINTWISE and _is_cast(self.view.op(inner)):
            inner = self.view.op(inner).args["input"]
            path.append(inner)
        softmax = self.view.op(inner)
        if softmax.kind is not Kind.SOFTMAX:
            raise Declined("a part of the probabilities is cut out", node)
        dim = softmax.args.get("dim")
        if not isinstance(dim, int) or dim % rank != rank - 1:
            raise Declined("the softmax runs over another axis than the keys", inner)
        if set(leaves((dims[-1],))) != set(leaves((self.keys,))):
            raise Declined(
                "the softmax runs over another axis than the one that is contracted with v", inner
            )
        self.interior.update(path)
        cat_node = self._strip_shift(softmax.args["input"])
        cat = self.view.op(cat_node)
        tensors = cat.args.get("tensors", ())
        cat_dim = cat.args.get("dim", 0)
        if cat.kind is not Kind.CAT or len(tensors) != 2 or cat_dim % rank != rank - 1:
            raise Declined("the probabilities lose a column that is not a sink", node)
        scores, sink = tensors
        if value(sink).shape[-1] != 1:
            raise Declined("the sink has more than one column, or stands before the keys", cat_node)
        self.interior.add(cat_node)
        dtype = value(source).dtype
        sink_dims = (*broadcast(dims[:-1], value(sink).shape[:-1]), ())
        return Source(inner, scores, dims, dtype, sink=(sink, sink_dims))

    def _strip_shift(self, node: Node) -> Node:
        """`x - max(x)` is `x` to a softmax; returns x and takes the shift into the region."""
        op = self.view.op(node)
        if op.kind is not Kind.POINTWISE or op.name != "sub" or not is_tensor(op.args.get("other")):
            return node
        shifted, shift = op.args["input"], op.args["other"]
        if not is_tensor(shifted) or op.args.get("alpha", 1) != 1:
            return node
        path = self._row_maximum(shift, shifted)
        if path is None:
            return node
        self.interior.update((node, *path))
        return shifted

    def _row_maximum(self, node: Node, of: Node) -> list[Node] | None:
        """The nodes of `of.max(-1, keepdim=True)` (values) or `of.amax(...)`, or None."""
        path = [node]
        while True:
            op = self.view.op(node)
            if node.op == "call_method" and node.target == "detach":
                node = node.args[0]  # type: ignore[assignment]
            elif node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
                if node.args[1] != 0:
                    return None
                node = node.args[0]  # type: ignore[assignment]
            elif node.op == "call_function" and node.target is getattr:
                if node.args[1] != "values":
                    return None
                node = node.args[0]  # type: ignore[assignment]
            else:
                break
            path.append(node)
        if op.name not in ("amax", "max") or op.args.get("input") is not of:
            return None
        dim = op.args.get("dim")
        dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
        if not isinstance(dim, int) or op.args.get("keepdim") is not True:
            return None
        return path if dim % len(value(of).shape) == len(value(of).shape) - 1 else None

    def _manual(self, op: Op, node: Node, dims: Dims) -> Source | None:
        """`exp(x) / sum(exp(x))`, `exp(x) / (1 + sum(exp(x)))`, `exp(x - logsumexp(x))`."""
        if op.name == "exp":
            return self._exp_of_difference(op, node, dims)
        if op.name != "div" or op.args.get("rounding_mode") is not None:
            return None
        top, bottom = op.args["input"], op.args["other"]
        if not is_tensor(top) or not is_tensor(bottom):
            return None
        exp = self.view.op(top)
        if exp.name != "exp" or exp.inplace:
            return None
        total, plus, passed = self._sum_and_more(bottom, top)
        if total is None:
            return None
        sum_op = self.view.op(total)
        if sum_op.args.get("keepdim") is not True:
            raise Declined("the denominator is not kept as a dimension of its own", total)
        self._require_key_axis(sum_op.args.get("dim"), total, dims)
        shifted = exp.args["input"]
        scores = self._strip_shift(shifted)
        sink: str | None = None
        if plus is not None:
            sink = self._plus_one(plus, scores, shifted, node)
        self.interior.update((top, total, *passed))
        return Source(node, scores, dims, value(node).dtype, sink=sink)

    def _sum_and_more(self, bottom: Node, top: Node) -> tuple[Node | None, Any, list[Node]]:
        """Reads the denominator as `sum(top)` or `sum(top) + more`."""
        op = self.view.op(bottom)
        if op.name == "sum" and op.args.get("input") is top:
            return bottom, None, []
        if op.name == "add" and op.args.get("alpha", 1) == 1:
            for a, b in (("input", "other"), ("other", "input")):
                part = op.args[a]
                if is_tensor(part):
                    inner = self.view.op(part)
                    if inner.name == "sum" and inner.args.get("input") is top:
                        return part, op.args[b], [bottom]
        return None, None, []

    def _plus_one(self, plus: Any, scores: Node, shifted: Node, node: Node) -> str:
        """The extra term must be one at the scale of the exponentials."""
        if shifted is scores and plus in (1, 1.0):
            return "0"
        if is_tensor(plus) and shifted is not scores:
            # exp(-m) beside exp(x - m) is one more logit of zero
            exp = self.view.op(plus)
            inner = exp.args.get("input")
            if exp.name == "exp" and is_tensor(inner):
                negated = self.view.op(inner)
                shift = self.view.op(shifted).args["other"]
                if negated.name == "neg" and negated.args.get("input") is shift:
                    self.interior.update((plus, inner))
                    return "0"
        raise Declined("the denominator has a term that is not one more logit", node)

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
        reduce = self.view.op(lse)
        if reduce.name != "logsumexp" or reduce.args.get("input") is not scores:
            return None
        if reduce.args.get("keepdim") is not True:
            raise Declined("the denominator is not kept as a dimension of its own", lse)
        self._require_key_axis(reduce.args.get("dim"), lse, dims)
        self.interior.update((inner, lse))
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
        pulled = pull_pointwise(node, dims)
        mapped = {source: self._visit(source, axes) for source, axes in pulled.items()}
        if all(result is None for result in mapped.values()):
            return None
        complete = {
            source: result if result is not None else self.inputs(source, pulled[source])
            for source, result in mapped.items()
        }
        self._scalars(node, complete)
        return self.builder.pointwise(op, node, complete)

    def _scalars(self, node: Node, complete: dict[Node, Node]) -> None:
        for source in node.all_input_nodes:
            if source not in complete:
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
            if other not in mapped:
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
    return _is_cast(op) and same and value(source).device == value(node).device


def _widens(op: Op, node: Node) -> bool:
    """A cast that loses nothing."""
    source = op.args.get("input")
    return (
        _is_cast(op)
        and is_tensor(source)
        and value(source).dtype in (torch.bfloat16, torch.float16)
        and value(node).dtype is torch.float32
        and value(source).device == value(node).device
    )


def _is_cast(op: Op) -> bool:
    return op.name in ("to", "type_as", "type", "float", "half", "bfloat16")


def _linear_in(op: Op, inner: Node) -> bool:
    if op.name in ("mul", "neg") or _is_cast(op) or op.name in ("clone", "contiguous", "alias"):
        return True
    return op.name == "div" and op.args.get("input") is inner


def _drops_last(op: Op, node: Node, rank: int) -> bool:
    """`x[..., :-1]` or an equal narrow over the last dimension."""
    source = value(op.args["input"]).shape
    if op.name == "narrow":
        dim, start = op.args.get("dim"), op.args.get("start")
        return dim in (-1, rank - 1) and start == 0 and value(node).shape[-1] == source[-1] - 1
    index = op.args["index"]
    parts = index if isinstance(index, tuple) else (index,)
    if not parts or not isinstance(parts[-1], slice):
        return False
    if Ellipsis not in parts and len(parts) != rank:
        return False
    rest = [p for p in parts[:-1] if p is not Ellipsis]
    if any(not isinstance(p, slice) or p != slice(None) for p in rest):
        return False
    last = parts[-1]
    if last.step not in (None, 1) or last.start not in (None, 0):
        return False
    stop = last.stop
    return stop == -1 or (isinstance(stop, int) and source[-1] - 1 == stop)


def _spelled(node: Node) -> str:
    name = getattr(node.target, "__name__", None) or str(node.target)
    return f"`{name}`"


