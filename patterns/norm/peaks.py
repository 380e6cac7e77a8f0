"""The largest value of each row, or of each group of a row: what a quantisation divides by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from fuser.graph.axes import Axis, Dims, Unproven, leaves
from fuser.graph.ops import Kind, Op, is_tensor
from fuser.graph.program import Program
from fuser.graph.view import GraphView

from .statistic import dims_of

_SPREADING = ("expand", "expand_as", "repeat_interleave")


@dataclass(frozen=True)
class Peak:
    """A largest value.

    Attributes:
        program: of what.
        dims: axes of it.
        source: axes of what it is taken of.
    """

    program: Program
    dims: Dims
    source: Dims

    def end(self, axes: Sequence[Axis]) -> int:
        """How many of some axes, at their end, it is taken over.

        Raises:
            Unproven: it is taken over others.
        """
        own = set(leaves(self.source)) - set(leaves(self.dims))
        count = len(own)
        if not own or set(axes[len(axes) - count :]) != own:
            raise Unproven(
                "the largest value is not that of a row, or of elements that follow each other in "
                "one"
            )
        return count


def is_peak(view: GraphView, node: Node) -> bool:
    """Whether a node is the largest value along dimensions, or that and its place."""
    op = view.op(node)
    if op.name == "getitem" and not is_tensor(op.args.get("input")):
        source = op.args.get("input")
        return isinstance(source, Node) and view.op(source).name == "max" and op.args["index"] == 0
    return op.name in ("amax", "max") and op.kind is Kind.REDUCE and "dim" in op.args


def source_of(view: GraphView, peak: Node) -> Node:
    """Of what it is the largest value."""
    op = view.op(peak)
    return (view.op(op.args["input"]) if op.name == "getitem" else op).args["input"]


def rows(view: GraphView, taken: Sequence[Node]) -> set[Node]:
    """What has one number for each row or group: the largest value, and what is made of it
    alone."""
    found: set[Node] = set()
    for node in taken[1:]:
        op = view.op(node)
        given = [op.args["input"]] if op.kind is Kind.VIEW else node.all_input_nodes
        sources = {n for n in given if n in taken}
        if is_peak(view, node) or (sources and sources <= found):
            found.add(node)
    return found


def spreads(view: GraphView, node: Node, taken: Sequence[Node]) -> bool:
    """Whether a node has each number of rows or groups several times."""
    op = view.op(node)
    spread = op.kind is Kind.VIEW and op.name in _SPREADING and not op.inplace
    return spread and op.args["input"] in rows(view, taken)


def reduced(op: Op, dims: Dims) -> Dims:
    """Axes of a reduction.

    Raises:
        Unproven: it is not known of what.
    """
    gone = dims_of(op, len(dims))
    if not gone:
        raise Unproven("the dimensions of a largest value are not known")
    if op.args.get("keepdim", False) is True:
        return tuple(() if d in gone else dim for d, dim in enumerate(dims))
    return tuple(dim for d, dim in enumerate(dims) if d not in gone)
