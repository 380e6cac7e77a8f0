"""Weights of one expert that are picked from those of the choices, where a choice is that expert.

(weights * (indices == e)).sum(-1)      torch.where(indices == e, weights, 0).sum(-1)
einsum("tk,tk->t", weights, (indices == e).float())
weights.masked_fill(indices != e, 0).sum(-1)            weights * (indices == e)   of one choice

Over all experts such weights are those of the choices, whatever the numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from fuser.graph.axes import Dim, Dims, broadcast, leaves, renamed, resolve
from fuser.graph.ops import is_tensor, value
from fuser.graph.pull import is_contraction, pull_contraction, pull_pointwise

from .branches import Branch
from .masks import Chosen, chosen, others
from .routing import summed
from .space import Place, Space
from .weights import Weights, same_weights, unchanged

_LIMIT = 32


@dataclass(frozen=True)
class Pick:
    """The weight of one expert.

    Attributes:
        indices: which expert each choice of each token is.
        weights: of the choices.
        choices: their axis; none where a token has one choice.
        expert: which of the experts it is.
    """

    indices: Place
    weights: Place
    choices: Dim
    expert: int

    def named(self, choices: Dim) -> Pick:
        """The same with another axis of choices, of as many."""
        names = dict(zip(leaves((self.choices,)), leaves((choices,)), strict=False))

        def place(of: Place) -> Place:
            return Place(of.node, renamed(of.dims, names))

        return replace(
            self, indices=place(self.indices), weights=place(self.weights), choices=choices
        )


@dataclass(frozen=True)
class Picks:
    """Weights that are picked from those of the same choices.

    Attributes:
        first: one of them.
        of: the branches that are weighted so, by the numbers of their experts.
        rest: by what else rows are multiplied, the same for all.
    """

    first: Pick
    of: Sequence[tuple[int, Branch]]
    rest: Weights

    @property
    def axis(self) -> Dim:
        return self.first.choices

    @property
    def is_complete(self) -> bool:
        """Whether the experts are those from 0 on, each once."""
        return sorted(number for number, _ in self.of) == list(range(len(self.of)))


def picks_of(space: Space, branches: Sequence[Branch]) -> list[Picks]:
    """Branches by the choices of which a weight is picked, the most first."""
    found: list[Picks] = []
    for b in branches:
        for i, factor in enumerate(b.weights.factors):
            pick = picked(space, factor)
            if pick is None:
                continue
            rest = b.weights.without(i)
            at = next((k for k, known in enumerate(found) if _joins(known, pick, rest)), None)
            if at is None:
                found.append(Picks(pick, [(pick.expert, b)], rest))
            else:
                found[at] = replace(found[at], of=[*found[at].of, (pick.expert, b)])
            break
    return sorted(found, key=lambda p: -len(p.of))


def _joins(known: Picks, pick: Pick, rest: Weights) -> bool:
    own, first = pick.named(known.first.choices), known.first
    same = (own.indices, own.weights) == (first.indices, first.weights)
    return same and same_weights(rest, known.rest)


def picked(space: Space, place: Place) -> Pick | None:
    """What a weight is picked from."""
    view, (node, dims) = space.view, _bare(space, place.node, place.dims)
    op = view.op(node)
    if op.inplace or view.is_written(node):
        return None
    if is_contraction(op):
        found = pull_contraction(op, node, dims)
        sides = [(found.a, found.a_dims), (found.b, found.b_dims)]
        return _product(space, sides, found.inner)
    inner = summed(op, node, dims)
    if inner is None:
        return _kept(space, node, dims, ())
    same = value(inner[0]).dtype is value(node).dtype
    return _kept(space, *inner) if same and not view.is_written(inner[0]) else None


def _bare(space: Space, node: Node, dims: Dims) -> tuple[Node, Dims]:
    """A tensor without what changes none of its numbers."""
    for _ in range(_LIMIT):
        step = None if space.view.is_written(node) else unchanged(space, node, dims)
        if step is None:
            break
        node, dims = step
    return node, resolve(dims)


def _kept(space: Space, node: Node, dims: Dims, choices: Dim) -> Pick | None:
    """Weights where choices are one expert, and zero elsewhere."""
    op = space.view.op(node)
    if op.inplace:
        return None
    if op.name == "mul":
        return _product(space, list(pull_pointwise(op, node, dims).items()), choices)
    if op.name not in ("where", "masked_fill"):
        return None
    fills = op.name == "masked_fill"
    weights, number = op.args["input"], op.args["value" if fills else "other"]
    mask, read = op.args["mask" if fills else "condition"], others if fills else chosen
    if not is_tensor(weights) or type(number) not in (int, float) or number != 0:
        return None
    known = read(space.view, mask, resolve(broadcast(dims, value(mask).shape)))
    own = _bare(space, weights, broadcast(dims, value(weights).shape))
    return _pick(known, Place(*own), choices)


def _product(space: Space, sides: Sequence[tuple[Node, Dims]], choices: Dim) -> Pick | None:
    """A mask of one expert times weights."""
    if len(sides) != 2:
        return None
    for mask, weights in (sides, sides[::-1]):
        known = chosen(space.view, *mask)
        found = None if known is None else _pick(known, Place(*_bare(space, *weights)), choices)
        if found is not None:
            return found
    return None


def _pick(known: Chosen | None, weights: Place, choices: Dim) -> Pick | None:
    if known is None or known.kept is not None or len(leaves((choices,))) > 1:
        return None
    both = set(leaves(known.indices.dims)) & set(leaves(weights.dims))
    counts = value(weights.node).dtype.is_floating_point
    told = set(leaves((choices,))) <= both and counts
    return Pick(known.indices, weights, choices, known.expert) if told else None
