"""Experts in a loop, each of which is given its tokens and writes their rows.

for e in range(E):
    b, k = torch.where(indices == e)
    out.index_add_(0, b, weights[b, k, None] * expert[e](x[b]))

The anchor is what is written to. The positions at which that is done lead to a mask, the mask to
the indices of the chosen experts; tokens and weights are read at the same positions. Sizes that
depend on which experts were chosen begin and end within the region.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from torch.fx import Node

from fuser.graph.axes import Dims, fresh, leaves, size_of
from fuser.graph.ops import value
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from ..declined import proved
from .expert import NoExpert
from .listed import accumulated, weights_of, with_runs
from .region import Mixture, matched, mixture
from .space import Space, require
from .writes import Accumulator, accumulators
from .written import Looped, looped, require_statements, whole


@register_pattern
class LoopOverExperts(Pattern):
    """Send each token through the experts that it chose, all of them at once.

        for e: out[b] += weights[b, k] · expert_e(x[b]), (b, k) where indices = e   =>   fuser::moe

    Sound when: every expert is there once, writes to the tokens that it reads, and is weighted with
    the weights of its own choices; experts differ by their tensors alone.
    Declines:   a statement that keeps one of two rows of a token; indices of unknown origin.
    """

    id: ClassVar[str] = "moe.loop"
    priority: ClassVar[int] = 20

    def anchors(self, view: GraphView) -> Iterable[Node]:
        for found in accumulators(view):
            yield found.writes[-1].node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        found = next(a for a in accumulators(view) if a.writes[-1].node is anchor)
        return proved(lambda: _prove(view, found), anchor)


def _prove(view: GraphView, found: Accumulator) -> Match | None:
    out_dims = fresh(value(found.output).shape, "o")
    match = _on_runs(view, found, out_dims)
    if match is None:
        loop = looped(view, found, out_dims)
        match = None if loop is None else _of_tokens(view, loop, out_dims)
    if match is None:
        return None
    anchor = found.writes[-1].node
    return replace(match, pattern=LoopOverExperts.id, anchor=anchor, keeps_result=False)


def _of_tokens(view: GraphView, loop: Looped, out_dims: Dims) -> Match | None:
    """The mixture of a loop that writes where tokens are; None where it writes rows of choices,
    which are a mixture with their sum alone."""
    found, first = loop.found, loop.first
    if not set(leaves(out_dims[:-1])) <= set(leaves(loop.experts[0].x.dims)):
        return None
    space = Space(view, value(found.output).dtype, leaves(out_dims[:-1]), first.space.chosen)
    choices = (*leaves((space.chosen, first.chosen.choices)),)
    dense = [axis for factor in first.weights.factors for axis in leaves((factor.experts,))]
    read = "a choice that may be no expert's has no weight among those of all experts"
    require(not (dense and loop.dropping), read, found.output)
    made = Mixture(
        loop.experts,
        len(loop.turns),
        first.chosen.indices,
        first.weights,
        dense=bool(dense),
        choices=choices,
        along=tuple(dense[:1]) or choices,
    )
    match = matched(space, found.output, out_dims, made, found.writes[-1].node)
    return loop.ended(view, replace(match, drops_nonfinite=False))


def _on_runs(view: GraphView, found: Accumulator, out_dims: Dims) -> Match | None:
    """The mixture of a loop over runs of sorted tokens, whose lengths Python is told."""
    anchor = found.writes[-1].node
    space = Space(view, value(found.output).dtype, leaves(out_dims[:-1]))
    try:
        experts = accumulated(space, found, out_dims)
    except NoExpert:
        return None
    if experts is None:
        return None
    inside = weights_of(experts, anchor)
    assert space.indices is not None
    require_statements(view, found, space.indices, space.chosen, dropping=False)
    match = mixture(space, found.output, out_dims, experts, inside, anchor)
    most = size_of(leaves(out_dims[:-1]))
    match = whole(view, match, found, space.interior, most)
    return with_runs(view, match, [write.node for write in found.writes])
