"""Tensors that count: `arange(n)`, and the token of each choice, `arange(T * K) // K`."""

from __future__ import annotations

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, Unproven, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView

_COPIES = ("clone", "contiguous", "alias", "to", "long", "int")
MAX_VIEWS = 16


def is_arange(view: GraphView, node: Node, dims: Dims | None = None, along: Dim = ()) -> bool:
    """Whether a tensor is `arange(n)`; with axes, whether it tells the position along one of them,
    and has no other."""
    for _ in range(MAX_VIEWS):
        op = view.op(node)
        if view.is_written(node) or op.inplace or value(node).is_floating_point():
            return False
        if op.kind is Kind.VIEW and dims is not None:
            try:
                node, dims = pull_view(op, node, dims)
            except Unproven:
                return False
        elif op.name in _COPIES and is_tensor(op.args.get("input")):
            node = op.args["input"]
        else:
            break
    return _counts_from_zero(node) and (dims is None or resolve(dims) == (leaves((along,)),))


def _counts_from_zero(node: Node) -> bool:
    if getattr(node.target, "__name__", "") != "arange" or set(node.kwargs) - {"dtype", "device"}:
        return False
    start, count = (node.args[0] if len(node.args) == 2 else 0), len(node.args)
    return count in (1, 2) and isinstance(start, int) and start == 0


def divided(op: Op) -> tuple[Node, int] | None:
    """What is divided by how much, where the quotient is rounded down."""
    source, other = op.args.get("input"), op.args.get("other")
    if not is_tensor(source) or type(other) is not int or value(source).is_floating_point():
        return None
    whole = op.name == "floor_divide"
    whole |= op.name == "div" and op.args.get("rounding_mode") in ("floor", "trunc")
    return (source, other) if whole else None


def repeated(view: GraphView, node: Node) -> int | None:
    """K where a tensor in one dimension is the token of each choice: every number K times."""
    found = divided(view.op(node))
    if found is not None:
        return found[1] if is_arange(view, found[0]) else None
    op = view.op(node)
    if op.kind is not Kind.VIEW:
        return None
    if op.name == "repeat_interleave":
        number = op.args.get("repeats")
        return number if type(number) is int and is_arange(view, op.args["input"]) else None
    source = op.args["input"]
    if value(source).ndim != 2 or type(value(source).shape[1]) is not int:
        return None
    dims = fresh(value(source).shape, "n")
    counts = op.name in ("reshape", "flatten") and is_arange(view, source, dims, leaves(dims[:1]))
    return value(source).shape[1] if counts else None


def tokens_of(view: GraphView, part: Node) -> tuple[Node, int | None, tuple[Node, ...]]:
    """The positions of choices, or the mask of them, of which a node has the tokens; how many
    choices each token has; and the nodes between. The node itself where it has no tokens.

    p // K              (arange(T * K) // K)[p]             arange(T).repeat_interleave(K)[mask]
    """
    op = view.op(part)
    found = divided(op)
    if found is not None and found[1] > 1 and not view.is_written(part):
        return *found, (part,)
    source, index = op.args.get("input"), op.args.get("index")
    index = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    reads = op.kind is Kind.SLICE and op.name == "getitem"
    reads |= op.name == "index_select" and op.args.get("dim") in (0, -1)
    if reads and is_tensor(source) and is_tensor(index) and value(source).ndim == 1:
        choices = None if view.is_written(part) else repeated(view, source)
        if choices is not None and choices > 1 and value(index).ndim == 1:
            return index, choices, (part,)
    return part, None, ()
