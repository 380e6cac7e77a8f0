"""Chains around an activation, gated or plain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch.fx import Node

from fuser.graph.axes import Unproven
from fuser.graph.effects import draws
from fuser.graph.ops import Kind, is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from ..neighbours import DTYPES, readers, same_shape
from .anchors import is_anchor
from .region import Found, largest


class _Chain(Pattern):
    """An activation with what is pointwise before and after it."""

    priority: ClassVar[int] = -20  # what stands around an activation is often another's
    modest: ClassVar[bool] = True

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return (node for node in view.nodes if is_anchor(view, node))

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        obstacle = _obstacle(view, anchor)
        if obstacle is not None:
            return self.declined(view, obstacle)
        try:
            found = largest(view, anchor, self.id)
        except Unproven as error:
            return self.declined(view, Decline(str(error), anchor))
        return self.chosen(view, found) if _is_first(view, found.match) else None

    @abstractmethod
    def declined(self, view: GraphView, decline: Decline) -> Decline | None:
        """What is told of an activation around which there is no region."""

    @abstractmethod
    def chosen(self, view: GraphView, found: Found) -> Match | Decline | None:
        """What is told of a region."""


@register_pattern
class GatedActivation(_Chain):
    """Fuse an activation, the product with what it gates, and their pointwise neighbours.

        pointwise -> act(gate) * up -> pointwise   =>   fuser::activation

    Sound when: one tensor alone leaves the region, and it has the shape of gate and up.
    Declines:   an activation that is used elsewhere; random numbers between it and the product;
        a gate that is broadcast.
    """

    id: ClassVar[str] = "activation.gated"

    def declined(self, view: GraphView, decline: Decline) -> Decline | None:
        return None  # the plain pattern tells it

    def chosen(self, view: GraphView, found: Found) -> Match | Decline | None:
        return found.match if found.gated else _without_product(view, found.match.outputs[0])


@register_pattern
class PlainActivation(_Chain):
    """Fuse an activation and its pointwise neighbours.

        pointwise -> act(x) -> pointwise   =>   fuser::activation

    Sound when: one tensor alone leaves the region.
    Declines:   other dtypes than fp32, fp16 and bf16; an activation that overwrites its input.
    """

    id: ClassVar[str] = "activation.plain"

    def declined(self, view: GraphView, decline: Decline) -> Decline | None:
        return decline

    def chosen(self, view: GraphView, found: Found) -> Match | Decline | None:
        return None if found.gated else found.match


def _obstacle(view: GraphView, anchor: Node) -> Decline | None:
    if view.op(anchor).inplace:
        return Decline("it overwrites its input, which was made elsewhere", anchor)
    dtype = value(anchor).dtype
    if dtype not in DTYPES:
        return Decline(f"it is computed in {str(dtype).removeprefix('torch.')}", anchor)
    return None


def _is_first(view: GraphView, match: Match) -> bool:
    """Whether no activation of a region stands above its anchor: of one region that tells."""
    before = (n for n in match.nodes if view.order[n] < view.order[match.anchor])
    return not any(is_anchor(view, node) for node in before)


def _without_product(view: GraphView, out: Node) -> Decline | None:
    """Why a region ends before a product that would make it a gate."""
    users = readers(view, out)
    for user in sorted(users, key=view.order.__getitem__):
        op = view.op(user)
        if op.kind is Kind.DROPOUT and draws(user, op):
            if any(view.op(reader).name == "mul" for reader in user.users):
                return Decline("random numbers are drawn between activation and product", user)
        if op.name != "mul" or not all(is_tensor(op.args.get(n)) for n in ("input", "other")):
            continue
        if not same_shape(user, out):
            return Decline("the activation is broadcast to what it gates", user)
        if len(users) > 1:
            other = next(u for u in users if u is not user)
            return Decline(f"the activation is used elsewhere, by `{other.name}`", user)
    return None
