"""From the input of a softmax up to the products of q and k that gave it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Unproven, broadcast, leaves, resolve
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.program import ProgramBuilder
from fuser.graph.pull import (
    Contraction,
    is_contraction,
    pull_contraction,
    pull_pointwise,
    pull_view,
)
from fuser.graph.view import GraphView, Mark

from ..captured import Captured, Inputs
from ..declined import Declined, spelled
from .walk import MAX_NODES


class ScoreWalk:
    """From the input of a softmax up to the contractions of q and k."""

    def __init__(self, view: GraphView, keys: tuple[Axis, ...], captured: Captured) -> None:
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
            if blocking is not None and blocking.op == "placeholder":
                raise Declined(
                    "no product of q and k was found behind the softmax: the scores are an input "
                    "of this graph",
                    node,
                    "look for a graph break between the product and the softmax",
                )
            what = f": {spelled(blocking)} comes first" if blocking is not None else ""
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

    def _try(self, node: Node, dims: Dims) -> Node | None:
        """Like `_visit`; what cannot be proved and holds no contraction is captured whole."""
        before = len(self.contractions)
        try:
            return self._visit(node, dims)
        except Unproven:
            if len(self.contractions) > before:
                raise
            return None

    def _pointwise(self, op: Op, node: Node, dims: Dims) -> Node | None:
        pulled = pull_pointwise(op, node, dims)
        mapped = {source: self._try(source, axes) for source, axes in pulled.items()}
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
            if op.kind is Kind.DROPOUT and draws(node, op):
                return node
            if op.kind not in (Kind.POINTWISE, Kind.VIEW, Kind.DROPOUT):
                return node
            sources = [n for n in node.all_input_nodes if is_tensor(n)]
            scored = [n for n in sources if self.view.marks[n] & Mark.SCORES]
            if not scored and not sources:
                return node
            node = (scored or sources)[0]
        return None
