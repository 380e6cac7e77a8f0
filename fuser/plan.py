"""From a graph to what will be done to it: matches that are sound, do not overlap, and pay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from . import measure, soundness
from .choice import choose
from .errors import PatternError
from .events import Candidate
from .graph.axes import Unproven
from .graph.fold import Folder
from .graph.modes import modes_at
from .graph.ops import value
from .graph.view import GraphView
from .lowering import Context, Emission, Refusal
from .options import Options
from .pattern import Decline, Match
from .registry import Registered, patterns
from .report.source import origin

_DROPS = (
    "a NaN or infinity of what was not chosen is in the result, times zero, and would not be in "
    "that of a replacement"
)
_KEEPS = "fuser.dense_moe is off; leave it at its default where such numbers need not be kept"


@dataclass(frozen=True)
class Planned:
    """A rewrite that will be made."""

    match: Match
    emissions: tuple[Emission, ...]
    origin: str = ""


@dataclass(frozen=True)
class Left:
    """A region that is left alone, and why."""

    pattern: str
    decline: Decline
    sound: bool = False
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Failed:
    """A pattern that raised."""

    pattern: str
    anchor: Node
    error: Exception


def plan(view: GraphView, options: Options) -> Iterator[Planned | Left | Failed]:
    """Decide for every anchor of every allowed pattern, the highest priority first."""
    return _Planner(view, options).decisions()


class _Planner:
    """Decides about one graph.

    Attributes:
        claimed: nodes of the rewrites that will be made, with their patterns.
        removed: those of them that nothing stands for afterwards.
        operands: what the replacements read, with their patterns.
        origins: what the first of equal regions is called.
    """

    def __init__(self, view: GraphView, options: Options) -> None:
        self.view, self.options, self.folder = view, options, Folder(view)
        self.claimed: dict[Node, str] = {}
        self.removed: set[Node] = set()
        self.operands: dict[Node, str] = {}
        self.origins: dict[Any, str] = {}

    def decisions(self) -> Iterator[Planned | Left | Failed]:
        for registered in patterns():
            if not self.options.allows(registered.pattern.id):
                continue
            for anchor in self._anchors(registered):
                if isinstance(anchor, Failed):
                    yield anchor
                    break
                decided = self._decide(registered, anchor)
                if decided is None:
                    continue
                if isinstance(decided, Planned):
                    self._claim(decided.match)
                yield decided

    def _claim(self, match: Match) -> None:
        self.claimed.update(dict.fromkeys(match.nodes, match.pattern))
        self.removed.update(match.nodes - set(match.outputs))
        self.operands.update(dict.fromkeys(_operands(match), match.pattern))

    def _rival(self, match: Match) -> str | None:
        """Whose rewrite has a part of a region, reads what would be gone, or leaves nothing to
        read: an operand may lie beyond what the region itself reads."""
        taken = next((self.claimed[n] for n in match.nodes if n in self.claimed), None)
        if taken is not None:
            return f"{taken}, which has priority or was tried before, takes a part of it"
        inside = match.nodes - set(match.outputs)
        reader = next((self.operands[n] for n in inside if n in self.operands), None)
        if reader is not None:
            return f"{reader}, which has priority or was tried before, reads a part of it"
        gone = next((n for n in _operands(match) if n in self.removed), None)
        if gone is not None:
            return f"{self.claimed[gone]}, which has priority or was tried before, has its input"
        return None

    def _anchors(self, registered: Registered) -> Iterator[Node | Failed]:
        pattern_id = registered.pattern.id
        try:
            for anchor in registered.pattern.anchors(self.view):
                if not isinstance(anchor, Node) or anchor not in self.view.order:
                    raise PatternError(
                        f"pattern {pattern_id!r}: `anchors` gave {anchor!r}, which is no node of "
                        "the graph."
                    )
                yield anchor
        except Exception as error:
            yield Failed(pattern_id, self.view.nodes[0], error)

    def _decide(self, registered: Registered, anchor: Node) -> Planned | Left | Failed | None:
        pattern_id, claimed = registered.pattern.id, self.claimed
        if registered.pattern.modest and anchor in claimed:
            return None
        try:
            found = registered.pattern.match(self.view, anchor)
            if found is None:
                return None
            soundness.require_well_formed(self.view, pattern_id, found)
            if isinstance(found, Decline):
                return None if anchor in claimed else Left(pattern_id, found)
            if claimed.get(anchor) == pattern_id and self._rival(found) is not None:
                return None  # of one region nothing is told twice
            with modes_at(self.view, anchor):
                return self._largest(found)
        except Unproven as error:
            return Left(pattern_id, Decline(str(error), anchor))
        except Exception as error:
            return Failed(pattern_id, anchor, error)

    def _largest(self, match: Match) -> Planned | Left:
        """The first of a region and lesser ones for the same that nothing stands against; else what
        stands against the first."""
        obstacle = self._obstacle(match)
        if obstacle is None:
            return self._lower(match)
        lesser = match.lesser
        while lesser is not None:
            smaller = lesser()
            if smaller is None:
                break
            soundness.require_well_formed(self.view, match.pattern, smaller)
            if self._obstacle(smaller) is None:
                return self._lower(smaller)
            lesser = smaller.lesser
        return Left(match.pattern, obstacle)

    def _obstacle(self, match: Match) -> Decline | None:
        rival = self._rival(match)
        if rival is not None:
            return Decline(rival, match.anchor)
        if match.drops_nonfinite and not self.options.dense_moe:
            return soundness.check(self.view, match) or Decline(_DROPS, match.anchor, hint=_KEEPS)
        return soundness.check(self.view, match)

    def _lower(self, match: Match) -> Planned | Left:
        if not match.calls:
            return Planned(match, ())
        context = self._context(match)
        chosen = choose(self.view, match, self.folder, context, self.options)
        if isinstance(chosen, Refusal):
            decline = Decline(chosen.reason, match.anchor)
            return Left(match.pattern, decline, sound=True, candidates=chosen.candidates)
        return Planned(match, chosen, context.origin)

    def _context(self, match: Match) -> Context:
        options = self.options
        tensors = [
            example
            for call in match.calls
            for operand in call.operands.values()
            if isinstance(example := value(operand.node), torch.Tensor)
        ]
        device = value(match.outputs[0]).device
        specs = tuple(call.spec for call in match.calls)
        own = origin(match.pattern, match.anchor)
        return Context(
            device,
            training=torch.is_grad_enabled() and any(t.requires_grad for t in tensors),
            native=match.native,
            excess=match.drops_nonfinite,
            inner=options.inner,
            folder=self.folder,
            autotune=options.inner == "inductor" and measure.is_wanted(device),
            origin=self.origins.setdefault((match.pattern, specs), own),
            atomics=options.atomics and not torch.are_deterministic_algorithms_enabled(),
        )


def _operands(match: Match) -> list[Node]:
    return [operand.node for call in match.calls for operand in call.operands.values()]
