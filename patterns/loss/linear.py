"""The cross-entropy of a linear layer's rows, found by structure.

The anchor is what reads the target: `cross_entropy`, `nll_loss`, or `gather`. From there the loss
grows downwards, as long as one value reads it, until nothing of the logits is read outside; what it
is then is read from its result upwards (`terms`), and every quantity in it from its logits up to
the product (`logits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch.fx import Node

from fuser.graph.axes import Axis, Dim, Dims, Unproven, fresh, leaves, renamed, resolve
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Call, Decline, Match, Operand, Pattern
from fuser.registry import register_pattern
from fuser.shape_readers import reads_shape_alone
from fuser.specs import LinearCrossEntropySpec, Reduction

from ..declined import Declined, proved
from .leaves import LOSSES, Quantity
from .logits import LogitsWalk, Product
from .terms import NoLoss, Term, Terms, paired

_RESULTS = 12
"""Values after the anchor that are tried as the result."""


@register_pattern
class LinearCrossEntropy(Pattern):
    """Cross-entropy of `x Wᵀ + b`, never with all of its logits.

        linear -> pointwise program -> cross_entropy [+ z-loss]   =>   fuser::linear_cross_entropy

    Sound when: classes are the axis that the matrix gives; logits are read by the loss alone.
    Declines:   logits that are returned or read elsewhere; targets that are probabilities, weights
                of classes; classes that are cut off, dropout on logits.
    """

    id: ClassVar[str] = "loss.linear_cross_entropy"
    priority: ClassVar[int] = 6

    def anchors(self, view: GraphView) -> Iterable[Node]:
        for node in view.nodes:
            if view.op(node).name in (*LOSSES, "gather"):
                yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        return proved(lambda: _prove(view, anchor), anchor)


@dataclass(frozen=True)
class _Loss:
    """What a value is: its loss of rows and perhaps a z-loss, and their products."""

    result: Node
    dims: Dims
    nll: Term
    square: Term | None
    product: Product
    other: Product | None
    nodes: frozenset[Node]


def _prove(view: GraphView, anchor: Node) -> Match | Decline | None:
    leaking: Decline | None = None
    rows: _Loss | None = None
    for node in _downwards(view, anchor):
        terms, dims = Terms(view), fresh(value(node).shape, "r")
        try:
            read = terms.read(node, dims)
            found = _assembled(view, node, dims, read, terms.interior)
        except NoLoss:
            break
        except (Declined, Unproven):
            if leaking is None and rows is None:
                raise
            break
        if found is None:
            continue
        leak = _leak(view, found)
        if leak is not None:
            leaking = leaking or _leaking(found, *leak)
        elif found.nll.reduction is not Reduction.NONE:
            return _match(anchor, found)
        else:
            rows = rows or found
    return leaking if rows is None else _match(anchor, rows)


def _downwards(view: GraphView, anchor: Node) -> Iterator[Node]:
    """The anchor and what reads it, as long as that is one value alone."""
    node = anchor
    for _ in range(_RESULTS):
        yield node
        users = [u for u in node.users if not reads_shape_alone(view, u, node)]
        if len(users) != 1 or not is_tensor(users[0]):
            return
        node = users[0]


def _assembled(
    view: GraphView, node: Node, dims: Dims, read: Sequence[Term], interior: set[Node]
) -> _Loss | None:
    """A sum of terms as a loss; None where it is only a part of one.

    Raises:
        NoLoss, Declined, Unproven: it is none, or none that is known.
    """
    found = paired(read)
    if found is None:
        return None
    losses, squares = (
        [t for t in found if t.quantity is q] for q in (Quantity.NLL, Quantity.SQUARE)
    )
    if len(losses) != 1 or len(squares) > 1:
        raise NoLoss
    nll, square = losses[0], squares[0] if squares else None
    product = _product(view, nll)
    other = None if square is None else _product(view, square)
    nodes = {*interior, *product.interior}
    if other is not None:
        nodes |= other.interior
        _require_same(product, other, node)
    return _Loss(node, dims, nll, square, product, other, frozenset(nodes))


def _product(view: GraphView, term: Term) -> Product:
    of = term.leaf
    if not leaves((of.classes,)):
        raise Declined("there is one class", of.logits)
    return LogitsWalk(view, of.classes).run(of.logits, of.dims)


def _require_same(a: Product, b: Product, node: Node) -> None:
    """Two quantities of a loss have to be of the same logits."""
    cuts = [[(cut.node, cut.part) for cut in p.cuts] for p in (a, b)]
    if a.node is not b.node or a.program != b.program or a.captured != b.captured:
        raise Declined("terms of the loss are made of different logits", node)
    if cuts[0] != cuts[1]:
        raise Declined("terms of the loss are made of different rows", node)


def _leak(view: GraphView, found: _Loss) -> tuple[Node, Node] | None:
    """A node of the region and somebody outside who reads it."""
    for node in sorted(found.nodes - {found.result}, key=view.order.__getitem__):
        for user in node.users:
            if user not in found.nodes and not reads_shape_alone(view, user, node):
                return node, user
    return None


def _leaking(found: _Loss, node: Node, user: Node) -> Decline:
    what = "the logits are" if node in found.product.interior else "a part of the loss is"
    if user.op != "output":
        return Decline(f"{what} used elsewhere, by `{user.name}`", node)
    hint = "do not return them: compile what gives the loss alone"
    return Decline(f"{what} used elsewhere: returned", node, hint=hint)


def _match(anchor: Node, found: _Loss) -> Match:
    product, nll, square = found.product, found.nll, found.square
    classes, dtype = leaves((nll.leaf.classes,)), value(product.node).dtype
    index, x_dims = _cut(product)
    rows, inner = tuple(a for a in leaves(x_dims) if a not in product.inner), product.inner
    target = nll.leaf.target
    assert target is not None
    operands = {
        "x": Operand(product.x, x_dims, (rows, inner), dtype, index=index),
        "weight": Operand(product.matrix, product.matrix_dims, (classes, inner), dtype),
        "target": Operand(target, resolve(nll.leaf.target_dims), (rows,)),
        **_factors(nll, "", rows, {}),
    }
    if product.bias is not None:
        operands["bias"] = Operand(product.bias, (classes,), (classes,), dtype)
    for i, captured in enumerate(product.captured):
        operands[f"c{i}"] = Operand(captured, (), ())
    spec = LinearCrossEntropySpec(
        captured=len(product.captured),
        after=product.program,
        bias=product.bias is not None,
        dtype=value(found.result).dtype,
        product_dtype=dtype,
        reduction=nll.reduction,
        ignore_index=nll.leaf.ignore_index,
        smoothing=nll.leaf.smoothing,
        scale=nll.scale,
    )
    summed = nll.reduction is not Reduction.NONE
    if square is not None and found.other is not None:
        if not summed or square.reduction is Reduction.NONE:
            raise Declined("rows have a z-loss each, and are not added up", found.result)
        spec = replace(spec, square=square.scale, square_reduction=square.reduction)
        operands |= _factors(square, "square_", rows, _renamed(product, found.other))
    result: Dims = () if summed else (rows,)
    _require_rows(rows, operands, found.result)
    facts = {"logits": product.program.formula(), "rows": str(spec.reduction.value)}
    if square is not None:
        facts["z-loss"] = f"{square.scale:.6g}"
    call = Call(spec, operands)
    return Match(
        LinearCrossEntropy.id,
        anchor,
        found.nodes,
        (found.result,),
        (call,),
        result,
        resolve(found.dims),
        facts,
    )


def _cut(product: Product) -> tuple[tuple[slice, ...], Dims]:
    """Which rows of x are left, and its axes then."""
    index, dims = [slice(None)] * len(product.x_dims), list(product.x_dims)
    for cut in product.cuts:
        if (cut.whole,) not in dims:
            raise Declined("rows are cut off after they were rearranged", cut.node)
        at = dims.index((cut.whole,))
        index[at], dims[at] = cut.part, cut.left
    return tuple(index) if product.cuts else (), resolve(dims)


def _factors(term: Term, prefix: str, rows: Dim, names: Mapping[Axis, Axis]) -> dict[str, Operand]:
    """The operands with which a term is multiplied, or by which it is divided."""
    found: dict[str, Operand] = {}
    for i, factor in enumerate(term.factors):
        dims = renamed(factor.dims, names)
        target: Dims = (rows,) if leaves(dims) else ((),) * bool(dims)
        found[f"{prefix}{'over' if factor.over else 'times'}_{i}"] = Operand(
            factor.node, dims, target
        )
    return found


def _renamed(product: Product, other: Product) -> dict[Axis, Axis]:
    """What rows of another reading of the same product are called in this one."""
    pairs = list(zip(product.dims, other.dims, strict=True))
    pairs += [(a.left, b.left) for a, b in zip(product.cuts, other.cuts, strict=True)]
    found: dict[Axis, Axis] = {}
    for own, theirs in pairs:
        own, theirs = leaves((own,)), leaves((theirs,))
        if len(own) == len(theirs) == 1:
            found[theirs[0]] = own[0]
    return found


def _require_rows(rows: Dim, operands: Mapping[str, Operand], node: Node) -> None:
    """All that differs between rows has the axes of x, and the target has all of them."""
    others = [
        set(leaves(operand.dims)) - set(rows)
        for name, operand in operands.items()
        if operand.target[:1] == (rows,) and name != "x"
    ]
    if any(others) or set(leaves(operands["target"].dims)) != set(rows):
        raise Declined("rows of the loss are not those of the product", node)
