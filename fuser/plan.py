"""From a graph to what will be done to it: matches that are sound, do not overlap, and pay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from . import measure, soundness
from .choice import choose
from .errors import PatternError
from .graph.axes import Unproven
from .graph.fold import Folder
from .graph.modes import modes_at
from .graph.ops import Kind, value
from .graph.view import GraphView
from .lowering import Context, Emission, Refusal
from .options import Options
from .pattern import Decline, Match
from .registry import Registered, patterns
from .report.source import origin


@dataclass(frozen=True)
class Planned:
    """A rewrite that will be made."""

    match: Match
    emissions: tuple[Emission, ...]


@dataclass(frozen=True)
class Left:
    """A region that is left alone, and why."""

    pattern: str
    decline: Decline
    sound: bool = False


@dataclass(frozen=True)
class Failed:
    """A pattern that raised."""

    pattern: str
    anchor: Node
    error: Exception


def plan(view: GraphView, options: Options) -> Iterator[Planned | Left | Failed]:
    """Decide for every anchor of every allowed pattern, the highest priority first."""
    claimed: dict[Node, str] = {}
    folder, origins = Folder(view), dict[Any, str]()
    for registered in patterns():
        if not options.allows(registered.pattern.id):
            continue
        for anchor in _anchors(view, registered):
            if isinstance(anchor, Failed):
                yield anchor
                break
            decided = _decide(view, registered, anchor, claimed, folder, origins, options)
            if decided is None:
                continue
            if isinstance(decided, Planned):
                claimed.update(dict.fromkeys(decided.match.nodes, decided.match.pattern))
            yield decided


def _anchors(view: GraphView, registered: Registered) -> Iterator[Node | Failed]:
    pattern_id = registered.pattern.id
    try:
        for anchor in registered.pattern.anchors(view):
            if not isinstance(anchor, Node) or anchor not in view.order:
                raise PatternError(
                    f"pattern {pattern_id!r}: `anchors` gave {anchor!r}, which is no node of the "
                    "graph."
                )
            yield anchor
    except Exception as error:
        yield Failed(pattern_id, view.nodes[0], error)


def _decide(
    view: GraphView,
    registered: Registered,
    anchor: Node,
    claimed: Mapping[Node, str],
    folder: Folder,
    origins: dict[Any, str],
    options: Options,
) -> Planned | Left | Failed | None:
    pattern_id = registered.pattern.id
    try:
        found = registered.pattern.match(view, anchor)
        if found is None:
            return None
        soundness.require_well_formed(view, pattern_id, found)
        if isinstance(found, Decline):
            return None if anchor in claimed else Left(pattern_id, found)
        taken = next((claimed[n] for n in found.nodes if n in claimed), None)
        if taken is not None:
            reason = f"{taken}, which has priority or was tried before, takes a part of it"
            return Left(pattern_id, Decline(reason, anchor))
        with modes_at(view, anchor):
            unsound = soundness.check(view, found)
            if unsound is not None:
                return Left(pattern_id, unsound)
            return _lower(view, found, folder, origins, options)
    except Unproven as error:
        return Left(pattern_id, Decline(str(error), anchor))
    except Exception as error:
        return Failed(pattern_id, anchor, error)


def _lower(
    view: GraphView, match: Match, folder: Folder, origins: dict[Any, str], options: Options
) -> Planned | Left:
    if not match.calls:
        return Planned(match, ())
    context = _context(view, match, folder, origins, options)
    chosen = choose(view, match, folder, context, options)
    if isinstance(chosen, Refusal):
        return Left(match.pattern, Decline(chosen.reason, match.anchor), sound=True)
    return Planned(match, chosen)


def _context(
    view: GraphView, match: Match, folder: Folder, origins: dict[Any, str], options: Options
) -> Context:
    tensors = [
        example
        for call in match.calls
        for operand in call.operands.values()
        if isinstance(example := value(operand.node), torch.Tensor)
    ]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    native = any(view.op(n).kind is Kind.ATTENTION for n in match.nodes)
    device = value(match.anchor).device
    autotune = options.inner == "inductor" and measure.is_wanted(device)
    specs = tuple(call.spec for call in match.calls)
    first = origins.setdefault((match.pattern, specs), origin(match.pattern, match.anchor))
    atomics = options.atomics and not torch.are_deterministic_algorithms_enabled()
    return Context(device, training, native, options.inner, folder, autotune, first, atomics)
