"""Products of rows with matrices of an expert, in every spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, broadcast, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import Contraction, is_contraction, pull_contraction

from ..declined import Declined
from .order import GROUPED
from .space import Place, Space

_NAMED = {"self": "input", "mat_a": "input", "mat2": "weight", "mat_b": "weight"}
"""What torch's grouped products call these."""


@dataclass(frozen=True)
class Product:
    """Rows times a matrix of the expert.

    Attributes:
        node: the product.
        rows, dims: what is multiplied; `inner` is its last axis.
        matrix, bias: of the expert.
        inner: axes that are contracted.
        out: axes of the features that it gives.
    """

    node: Node
    rows: Node
    dims: Dims
    matrix: Place
    bias: Place | None
    inner: Dim
    out: Dim


class Products:
    """Reads products; a matrix is told from rows by its axes."""

    def __init__(self, space: Space) -> None:
        self.space, self.view, self.interior = space, space.view, space.interior

    def is_one(self, node: Node) -> bool:
        """Whether a node is a product, or a view of one."""
        op = self.view.op(node)
        while op.kind is Kind.VIEW:
            node = op.args["input"]
            op = self.view.op(node)
        return is_contraction(op) or op.name in ("linear", "addmm") or is_grouped(node)

    def find(self, node: Node, dims: Dims) -> Product | None:
        """The product that a node with these axes is."""
        op = self.view.op(node)
        dims = resolve(dims)
        if op.name == "linear" and is_tensor(op.args.get("weight")):
            return self._linear(op, node, dims)
        if is_grouped(node):
            return self._grouped(node, dims)
        if op.name == "addmm" and all(is_tensor(op.args.get(n)) for n in ("mat1", "mat2")):
            found = _product(op, dims)
        elif is_contraction(op):
            found = pull_contraction(op, node, dims)
        else:
            return None
        sides = ((found.a, found.a_dims), (found.b, found.b_dims))
        places = [self.space.locate(*side) for side in sides]
        out = set(leaves(dims)) - self.space.row_axes
        own = [set(leaves(p.dims)) for p in places]
        matrices = [not axes & self.space.token_axes and out <= axes for axes in own]
        if sum(matrices) != 1 or not found.inner:
            return None
        at = matrices.index(True)
        bias = None
        if op.name in ("baddbmm", "addmm"):
            if op.args.get("beta", 1) != 1 or op.args.get("alpha", 1) != 1:
                return None
            added = op.args["input"]
            bias = self.bias(added, broadcast(dims, value(added).shape))
        return self._made(node, *sides[1 - at], places[at], bias, found.inner)

    def _linear(self, op: Op, node: Node, dims: Dims) -> Product:
        weight, bias = op.args["weight"], op.args.get("bias")
        inner = fresh((value(weight).shape[-1],), "inner")[0]
        matrix = self.space.locate(weight, (dims[-1], inner))
        placed = None if bias is None else self.bias(bias, (dims[-1],))
        return self._made(node, op.args["input"], (*dims[:-1], inner), matrix, placed, inner)

    def _grouped(self, node: Node, dims: Dims) -> Product | None:
        """`grouped_mm(rows, matrices, ends)`, of rows that are sorted by their experts."""
        given = grouped_arguments(node)
        rows, matrices, ends = (given.get(name) for name in ("input", "weight", "offs"))
        if not (is_tensor(rows) and is_tensor(matrices) and is_tensor(ends)):
            return None
        if not self.space.sorted:
            return None
        if value(matrices).ndim != 3 or len(dims) != 2 or given.get("bias") is not None:
            return None
        count, width = value(matrices).shape[:2]
        if not isinstance(count, int) or not self.space.ends_at(ends, count):
            raise Declined("rows are cut elsewhere than where the next expert begins", node)
        experts, inner = fresh((count,), "e")[0], fresh((width,), "inner")[0]
        place = self.space.locate(matrices, (experts, inner, dims[1]))
        matrix = Place(place.node, place.dims, experts)
        return self._made(node, rows, (dims[0], inner), matrix, None, inner)

    def _made(
        self, node: Node, rows: Node, dims: Dims, matrix: Place, bias: Place | None, inner: Dim
    ) -> Product:
        self.interior.add(node)
        known = {*leaves((inner,)), *leaves((matrix.experts,))}
        out = tuple(a for a in leaves(matrix.dims) if a not in known)
        return Product(node, rows, resolve(dims), matrix, bias, inner, out)

    def bias(self, node: Node, dims: Dims) -> Place:
        """What is added to a product, which may not differ between tokens."""
        place = self.space.locate(node, dims)
        if set(leaves(place.dims)) & self.space.token_axes:
            raise Declined("what is added to an expert's product differs between tokens", node)
        return place


def _product(op: Op, dims: Dims) -> Contraction:
    """Axes of the matrices of `addmm`."""
    a, b = op.args["mat1"], op.args["mat2"]
    inner = fresh((value(a).shape[1],), "inner")[0]
    return Contraction(a, (dims[0], inner), b, (inner, dims[1]), inner)


def grouped_arguments(node: Node) -> dict[str, Any]:
    """What a grouped product is given, by name."""
    names = ("input", "weight", "offs", "bias")
    named = {_NAMED.get(name, name): given for name, given in node.kwargs.items()}
    return dict(zip(names, node.args, strict=False)) | named


def is_grouped(node: Node) -> bool:
    """Whether a node multiplies runs of rows with a matrix each."""
    name = str(getattr(node.target, "_opname", getattr(node.target, "__name__", "")))
    package = str(getattr(node.target, "namespace", getattr(node.target, "__module__", "")))
    return (
        node.op == "call_function"
        and name in GROUPED
        and package.startswith(("torch", "aten", "transformers"))
    )
