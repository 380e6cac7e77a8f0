"""How experts are rated and weighted: from the weights of the chosen ones up to the logits.

    weights  <-  renormalised  <-  taken at the choices  <-  softmax over experts  <-  logits
                 choices       <-  masked by groups      <-  the same

Everything between is pointwise, and becomes a program of one token and one expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.fx import Node

from fuser.graph.axes import Dim, Dims, fresh, leaves, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.program import Program, ProgramBuilder
from fuser.graph.pull import pull_pointwise, pull_view
from fuser.graph.view import GraphView

from ..declined import Declined, spelled
from .choices import found_by, reads_as_told
from .routing import summed
from .space import require

MAX_NODES = 64
"""Longest program considered."""
_DETACH = ("detach", torch.detach, torch.Tensor.detach, torch.ops.aten.detach.default)
_WIDENED = ("to", "float", "type")


@dataclass(frozen=True)
class Choice:
    """`topk` or `max` along the last dimension.

    Attributes:
        node: the operator.
        scores: what is compared.
        values, indices: what it gives, where somebody takes it.
        count: how many are chosen.
        largest, sorted: as `topk` takes them.
        first: of equals the first is chosen for certain.
    """

    node: Node
    scores: Node
    values: Node | None
    indices: Node | None
    count: int
    largest: bool = True
    sorted: bool = True
    first: bool = False

    @property
    def results(self) -> list[Node]:
        return [n for n in (self.values, self.indices) if n is not None]


def choice_of(view: GraphView, node: Node) -> Choice | None:
    """The choice that an operator makes; None where it makes none, or along another dimension."""
    op = view.op(node)
    scores = op.args.get("input")
    if op.name not in ("topk", "max") or not is_tensor(scores) or is_tensor(node):
        return None
    dim = op.args.get("dim", -1 if op.name == "topk" else None)
    if type(dim) is not int or dim % value(scores).ndim != value(scores).ndim - 1:
        return None
    given: list[Node | None] = [None, None]
    for user in node.users:
        which = next((i for i in (0, 1) if found_by(view, user, i) is not None), None)
        if which is None or given[which] is not None:
            return None
        given[which] = user
    if op.name == "max":
        kept = op.args.get("keepdim") is True
        return Choice(node, scores, *given, count=1, first=True) if kept else None
    count = op.args.get("k")
    largest, in_order = op.args.get("largest", True), op.args.get("sorted", True)
    if type(count) is not int or count < 1:
        return None
    weights, indices = given
    return Choice(node, scores, weights, indices, count, largest is True, in_order is True)


def taken_by(view: GraphView, node: Node) -> tuple[Choice, Node] | None:
    """The choice whose scores a node has, and the tensor that it takes them from."""
    if found_by(view, node, 0) is not None and isinstance(node.args[0], Node):
        found = choice_of(view, node.args[0])
        return None if found is None else (found, found.scores)
    op = view.op(node)
    index, source = op.args.get("index"), op.args.get("input")
    if not (is_tensor(index) and is_tensor(source)) or not reads_as_told(view, op):
        return None
    dim, rank = op.args.get("dim"), value(node).ndim
    if found_by(view, index) is None or type(dim) is not int or dim % rank != rank - 1:
        return None
    if op.args.get("sparse_grad") or "_3" in op.args:
        return None
    if value(source).shape[:-1] != value(index).shape[:-1]:
        return None
    assert isinstance(index.args[0], Node)
    found = choice_of(view, index.args[0])
    return None if found is None else (found, source)


@dataclass(frozen=True)
class Softmax:
    """A softmax over experts, and the program of what goes into it."""

    node: Node
    before: Program
    dtype: torch.dtype


@dataclass
class Ranking:
    """What is found of a router on the way up.

    Attributes:
        view: the graph.
        root: the scores of the chosen experts.
        source: the tensor that they are taken from.
        logits: where the way ends.
        experts: the axis of experts.
        tokens: dimensions of tokens; known once the root was passed.
        chosen: the dimension of the choices.
        softmax: over experts, once it was passed.
        captured: tensors with a number for every expert, and their axes.
        dims: axes of the tensors that programs start from.
        interior: nodes that were passed.
        followed: those of them that write in place.
    """

    view: GraphView
    root: Node
    source: Node
    logits: Node
    experts: Dim
    reached: set[Node]
    tokens: Dims = ()
    chosen: Dim = ()
    softmax: Softmax | None = None
    captured: list[tuple[Node, Dims]] = field(default_factory=list[tuple[Node, Dims]])
    dims: dict[Node, Dims] = field(default_factory=dict[Node, Dims])
    interior: set[Node] = field(default_factory=set[Node])
    followed: set[Node] = field(default_factory=set[Node])

    @staticmethod
    def of(view: GraphView, root: Node, source: Node, logits: Node) -> Ranking:
        return Ranking(
            view, root, source, logits, fresh(value(source).shape[-1:], "e")[0],
            _readers(view, logits),
        )  # fmt: skip

    def meet(self, node: Node, dims: Dims) -> None:
        """A tensor that programs start from has the same axes wherever it is read."""
        known = self.dims.setdefault(node, dims)
        same = resolve(known) == resolve(dims)
        require(same, "scores are combined with a rearranged copy of themselves", node)

    def cross(self, dims: Dims) -> Dims:
        """Axes of the scores of all experts, given those of the chosen ones."""
        self.tokens, self.chosen = resolve(dims)[:-1], resolve(dims)[-1]
        return (*self.tokens, leaves((self.experts,)))

    def is_experts(self, dim: Dim) -> bool:
        return leaves((dim,)) == leaves((self.experts,))

    def passed(self, op: Op, node: Node, dims: Dims, dtype: torch.dtype) -> None:
        """A softmax over experts, the only one.

        Raises:
            Declined: it is over something else, or not the only one.
        """
        at = op.args.get("dim")
        over = type(at) is int and self.is_experts(resolve(dims)[at])
        require(over, "a softmax runs over another dimension than that of experts", node)
        if self.softmax is None:
            walk = Walk(self, {self.logits: "x"}, softmax=False)
            self.softmax = Softmax(node, walk.run(op.args["input"], dims, node), dtype)
        require(self.softmax.node is node, "there is more than one softmax over experts", node)


class Walk:
    """One program, from its result up to the tensors that it starts from.

    Attributes:
        known: those tensors, and what the program calls them.
        softmax: it may start from a softmax over experts, `s`.
        captures: it may read tensors with a number for every expert, and no gradient gets through.
        crosses: it may go from the scores of the chosen experts to those of all.
    """

    def __init__(
        self,
        ranking: Ranking,
        known: dict[Node, str],
        *,
        softmax: bool = True,
        captures: bool = False,
        crosses: bool = True,
    ) -> None:
        self.ranking, self.known = ranking, known
        self.softmax, self.captures, self.crosses = softmax, captures, crosses
        self.builder = ProgramBuilder()
        self._inputs: dict[str, Node] = {}
        self._seen: dict[Node, tuple[Dims, Node]] = {}

    def run(self, node: Node, dims: Dims, reader: Node) -> Program:
        """
        Raises:
            Declined, Unproven: something in between is not pointwise, or not proved.
        """
        return self.builder.finish(self._visit(node, dims, reader))

    def _visit(self, node: Node, dims: Dims, reader: Node) -> Node:
        view, dims = self.ranking.view, resolve(dims)
        first, last = view.order[node] + 1, view.order[reader]
        written = view.mutated_between(node, first, last)
        require(written is None, "a tensor is written to before the router has read it", reader)
        if node in self._seen:
            before, result = self._seen[node]
            same = resolve(before) == dims
            require(same, "scores are combined with a rearranged copy of themselves", node)
            return result
        require(len(self._seen) < MAX_NODES, "the program is too long", node)
        if node in self.known:
            self.ranking.meet(node, dims)
            result = self._input(self.known[node])
        else:
            self.ranking.interior.add(node)
            result = self._made(node, dims)
        self._seen[node] = dims, result
        return result

    def _input(self, name: str) -> Node:
        if name not in self._inputs:
            self._inputs[name] = self.builder.input(name)
        return self._inputs[name]

    def _made(self, node: Node, dims: Dims) -> Node:
        ranking = self.ranking
        op = ranking.view.op(node)
        if node is ranking.root:
            require(self.crosses, "weights are made from others beside their sum", node)
            return self._visit(ranking.source, ranking.cross(dims), node)
        if op.kind is Kind.VIEW and not op.inplace:
            return self._visit(*pull_view(op, node, dims), node)
        if op.kind is Kind.SOFTMAX and self.softmax:
            ranking.passed(op, node, dims, value(node).dtype)
            return self._input("s")
        if node.target in _DETACH and self.captures:
            return self._visit(node.all_input_nodes[0], dims, node)
        if op.kind is Kind.DROPOUT and not draws(node, op):
            return self._visit(op.args["input"], dims, node)
        if op.kind is not Kind.POINTWISE:
            raise Declined(f"{spelled(node)} stands between logits and weights", node)
        mapped = {
            source: self._operand(source, own, node)
            for source, own in pull_pointwise(op, node, dims).items()
        }
        numbers = all(map(is_tensor, node.all_input_nodes))
        require(numbers, "a number is not known while compiling", node)
        return self.builder.pointwise(op, node, mapped)

    def _operand(self, node: Node, dims: Dims, reader: Node) -> Node:
        """A tensor that is made from the logits, or one with a number for every expert."""
        ranking = self.ranking
        if node in ranking.reached or node in self.known:
            return self._visit(node, dims, reader)
        require(self.captures, "weights are combined with another tensor", node)
        own = resolve(dims)
        experts = set(leaves((ranking.experts,)))
        whole = set(leaves(own)) <= experts and bool(own)
        require(whole, "scores are combined with what is no number of each expert", node)
        if (node, own) not in ranking.captured:
            ranking.captured.append((node, own))
        return self._input(f"b{ranking.captured.index((node, own))}")


@dataclass(frozen=True)
class Tail:
    """From the scores of the chosen experts to their weights.

    Attributes:
        given: from which tensor on.
        softmax: over choices, that gave it.
        total: its sum over choices, and the dtype of that.
        program: of `g` and `t`.
    """

    given: Node
    softmax: Node | None
    total: Node | None
    program: Program


def tail(ranking: Ranking, end: Node, dims: Dims, reductions: list[Node]) -> tuple[Tail, Dims]:
    """The way from `end` up to the scores of the chosen experts, or to their softmax; with the
    axes of what it starts from.

    Raises:
        Declined, Unproven: there is more between than one softmax and one sum, over choices.
    """
    view = ranking.view
    softmaxes = [n for n in reductions if view.op(n).kind is Kind.SOFTMAX]
    sums = [n for n in reductions if n not in softmaxes]
    require(len(softmaxes) < 2 and len(sums) < 2, "weights are normalised more than once", end)
    total = sums[0] if sums else None
    given = softmaxes[0] if softmaxes else _added(view, total) if total else ranking.root
    known = {given: "g", **({total: "t"} if total else {})}
    program = Walk(ranking, known, softmax=False, crosses=False).run(end, dims, end)
    require(given in ranking.dims, "weights are made from their sum alone", end)
    own = resolve(ranking.dims[given])
    if total is not None:
        require(total in ranking.dims, "weights are normalised more than once", total)
        wide = value(total).dtype.itemsize >= value(given).dtype.itemsize
        require(wide, "a sum is rounded to another dtype", total)
        ranking.interior.add(total)
        found = summed(view.op(total), total, ranking.dims[total])
        require(found is not None, "weights are added up over several dimensions", total)
        assert found is not None
        source, pulled, axis = found
        ranking.interior |= {source} - {given}
        kept = (*resolve(pulled)[:-1], own[-1])
        last = leaves((axis,)) == leaves(resolve(pulled)[-1:]) and kept == own
        require(last, "weights are added up over another dimension than that of choices", total)
        require(_added(view, total) is given, "weights are divided by the sum of others", total)
    ranking.interior.add(given)
    return Tail(given, softmaxes[0] if softmaxes else None, total, program), own


def _added(view: GraphView, total: Node) -> Node:
    """What a sum adds up; in half precision, where it was cast to fp32 for that alone."""
    source = view.op(total).args["input"]
    op = view.op(source)
    inner = op.args.get("input")
    alone = set(source.users) == {total} and op.name in _WIDENED
    if not alone or not is_tensor(inner) or value(source).dtype is not torch.float32:
        return source
    return inner if value(inner).dtype in (torch.float16, torch.bfloat16) else source


def _readers(view: GraphView, node: Node) -> set[Node]:
    """Everything that is made from a node, and the node."""
    found, pending = {node}, [node]
    while pending:
        new = [user for user in pending.pop().users if user not in found]
        found.update(new)
        pending += new
    return found
