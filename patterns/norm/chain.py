"""Chains around a normalisation, found from torch's own functions and from arithmetic."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch.fx import Node

from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from ..declined import proved
from . import native, spelled, statistic
from .core import Core
from .region import grown


class _Chain(Pattern):
    """A normalisation with what is pointwise before and after it."""

    @abstractmethod
    def core(self, view: GraphView, anchor: Node) -> Core | None:
        """What is normalised."""

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        def proof() -> Match | Decline | None:
            core = self.core(view, anchor)
            return None if core is None else grown(view, core, self.id)

        return proved(proof, anchor)


@register_pattern
class NativeChain(_Chain):
    """Fuse a layer, RMS, group, instance or L2 norm with its pointwise neighbours.

        pointwise -> layer_norm(x) -> pointwise
        =>   fuser::norm

    Sound when: one tensor alone leaves the region; the dimensions are those of the function.
    Declines:   running statistics; float64; other norms than that of squares.
    """

    id: ClassVar[str] = "norm.native"
    priority: ClassVar[int] = 5

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return (node for node in view.nodes if view.op(node).name in native.NAMES)

    def core(self, view: GraphView, anchor: Node) -> Core | None:
        return native.read(view, anchor)


@register_pattern
class SpelledChain(_Chain):
    """The same for norms that are written out.

        mean of squares, or variance -> + eps -> root -> x / root
        =>   fuser::norm

    Sound when: what is divided is what was squared, less its mean or not; the statistic is of the
        dimensions along which it is broadcast.
    Declines:   a variance that divides by n - 1; eps outside the root; statistics that escape.
    """

    id: ClassVar[str] = "norm.spelled"
    priority: ClassVar[int] = 5

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return (node for node in view.nodes if view.op(node).name in statistic.STATISTICS)

    def core(self, view: GraphView, anchor: Node) -> Core | None:
        return spelled.read(view, anchor)
