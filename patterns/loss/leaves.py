"""The operators of which losses are made, read with the axes of their rows.

cross_entropy, nll_loss of log_softmax      nll
logsumexp                                   lse
gather of logits, at the target             picked
gather of log_softmax, at the target        -nll
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.pull import pull_view
from fuser.graph.view import GraphView
from fuser.specs import Reduction
from fuser.torch_private import known_true

from ..declined import Declined

_VIEWS = 16
LOSSES = ("cross_entropy", "nll_loss")
_REDUCTIONS = {"none": Reduction.NONE, "sum": Reduction.SUM, "mean": Reduction.MEAN}


class Quantity(Enum):
    """Of a row."""

    NLL = auto()
    LSE = auto()
    PICKED = auto()
    """The target's logit."""
    SQUARE = auto()
    """Of logsumexp."""


@dataclass(frozen=True)
class Leaf:
    """A quantity of every row of some logits.

    Attributes:
        sign: it is the negative of the quantity.
        logits, dims, classes: and their axes; `target_dims` are those of the target.
        normalised: the operator `log_softmax` between, and views of it; none where it is left to
            the quantity.
    """

    quantity: Quantity
    sign: float
    logits: Node
    dims: Dims
    classes: Dim
    target: Node | None = None
    target_dims: Dims = ()
    ignore_index: int | None = None
    smoothing: float = 0.0
    reduction: Reduction = Reduction.NONE
    normalised: tuple[Node, ...] = ()


def leaf(view: GraphView, node: Node, dims: Dims) -> Leaf | None:
    """The quantity that a node is, or None.

    Raises:
        Declined: it is one that nothing is known of.
    """
    op = view.op(node)
    if op.name in LOSSES:
        return _loss(view, op, node, dims)
    if op.name == "logsumexp":
        return _logsumexp(op, node, dims)
    if op.name == "gather":
        return _picked(view, op, node, dims)
    return None


def _loss(view: GraphView, op: Op, node: Node, dims: Dims) -> Leaf:
    logits, target = op.args.get("input"), op.args.get("target")
    reduction = _REDUCTIONS.get(op.args.get("reduction", "mean"))
    if not is_tensor(logits) or not is_tensor(target) or reduction is None:
        raise Declined("its arguments are not known", node)
    if op.args.get("size_average") is not None or op.args.get("reduce") is not None:
        raise Declined("it uses arguments that PyTorch has deprecated", node)
    if op.args.get("weight") is not None:
        raise Declined("classes have weights", node)
    shape = value(logits).shape
    if value(target).is_floating_point():
        raise Declined("its targets are probabilities of classes", node)
    if len(shape) < 2:
        raise Declined("the logits are those of one row", node)
    numbers = [op.args.get(n, d) for n, d in (("ignore_index", -100), ("label_smoothing", 0.0))]
    if not isinstance(numbers[0], int) or not isinstance(numbers[1], (int, float)):
        raise Declined("its arguments are known only when it runs", node)
    own = fresh(shape, "r")
    rows = dims if reduction is Reduction.NONE else (own[0], *own[2:])
    found = Leaf(
        Quantity.NLL, 1.0, logits, (rows[0], own[1], *rows[1:]), own[1], target, rows,
        numbers[0], float(numbers[1]), reduction,
    )  # fmt: skip
    if op.name == "cross_entropy":
        return found
    normalised = _normalised(view, found)
    if normalised is None:
        raise Declined("what it takes is not made by log_softmax", node)
    return normalised


def _logsumexp(op: Op, node: Node, dims: Dims) -> Leaf | None:
    logits, keep = op.args.get("input"), op.args.get("keepdim", False)
    if not is_tensor(logits) or not isinstance(keep, bool):
        return None
    rank, dim = value(logits).ndim, op.args.get("dim")
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if not isinstance(dim, int) or rank < 2:
        return None
    at = dim % rank
    classes = fresh((value(logits).shape[at],), "v")[0]
    after = dims[at + 1 :] if keep else dims[at:]
    return Leaf(Quantity.LSE, 1.0, logits, (*dims[:at], classes, *after), classes)


def _picked(view: GraphView, op: Op, node: Node, dims: Dims) -> Leaf | None:
    """`gather(logits, dim, target.unsqueeze(dim))`."""
    logits, dim, index = (op.args.get(n) for n in ("input", "dim", "index"))
    if not is_tensor(logits) or not is_tensor(index) or not isinstance(dim, int):
        return None
    shape, at = value(logits).shape, dim % value(logits).ndim
    if len(shape) < 2 or value(index).ndim != len(shape) or leaves((dims[at],)):
        return None
    sizes = zip(shape, value(index).shape, strict=True)
    if any(i != at and not known_true(a == b) for i, (a, b) in enumerate(sizes)):
        return None
    classes = fresh((shape[at],), "v")[0]
    own = (*dims[:at], classes, *dims[at + 1 :])
    found = Leaf(Quantity.PICKED, 1.0, logits, own, classes, index, dims)
    normalised = _normalised(view, found)
    if normalised is None:
        return found
    return replace(normalised, quantity=Quantity.NLL, sign=-1.0)


def _normalised(view: GraphView, found: Leaf) -> Leaf | None:
    """What is given to a `log_softmax` over the classes, perhaps seen through views of it; None
    where there is none.

    Raises:
        Declined, Unproven: it runs over something else.
    """
    node, dims, passed = found.logits, found.dims, list[Node]()
    while view.op(node).kind is Kind.VIEW and len(passed) < _VIEWS:
        passed.append(node)
        node, dims = pull_view(view.op(node), node, dims)
    op, dims = view.op(node), resolve(dims)
    if op.name != "log_softmax":
        return None
    source, dim = op.args.get("input"), op.args.get("dim")
    if not is_tensor(source) or not isinstance(dim, int):
        raise Declined("the dimension of log_softmax is not given", node)
    if dims[dim % len(dims)] != leaves((found.classes,)):
        raise Declined("log_softmax runs over another axis than the classes", node)
    return replace(found, logits=source, dims=dims, normalised=(*passed, node))


def same_rows(a: Leaf, b: Leaf) -> bool:
    """Whether two quantities are of the same rows of the same logits, over the same dimension."""
    axes = [
        [None if dim == leaves((x.classes,)) else dim for dim in resolve(x.dims)] for x in (a, b)
    ]
    return a.logits is b.logits and axes[0] == axes[1]
