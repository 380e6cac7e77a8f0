"""Fold what is the same in every layer: thirty-two equal rewrites read as one, times 32."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..events import Failure, NearMiss, Rewritten, Verdict, Where

Event = TypeVar("Event", Rewritten, NearMiss, Failure, Verdict)
_NUMBER = re.compile(r"\d+")
NAMES_NODES = ("inputs",)
"""Facts that name nodes, which differ from layer to layer."""


@dataclass(frozen=True)
class Folded(Generic[Event]):
    """Events that are the same up to the layer."""

    events: tuple[Event, ...]

    @property
    def first(self) -> Event:
        return self.events[0]

    @property
    def times(self) -> str:
        return f" ×{len(self.events)}" if len(self.events) > 1 else ""  # noqa: RUF001

    @property
    def module(self) -> str:
        return merged([event.where.module for event in self.events])


def fold(events: Sequence[Event]) -> list[Folded[Event]]:
    """Groups of equal events in the order in which each first appeared."""
    groups: dict[Hashable, list[Event]] = {}
    for event in events:
        groups.setdefault(_key(event), []).append(event)
    return [Folded(tuple(group)) for group in groups.values()]


def merged(paths: Sequence[str]) -> str:
    """One path for several that differ in numbers: `layers.{0-31}.attn`."""
    columns = list(zip(*(path.split(".") for path in paths), strict=True))
    return ".".join(_merge_part(sorted(set(column), key=_natural)) for column in columns)


def _key(event: Rewritten | NearMiss | Failure | Verdict) -> Hashable:
    place = (event.pattern, *_place(event.where))
    if isinstance(event, Rewritten):
        facts = tuple(item for item in event.facts.items() if item[0] not in NAMES_NODES)
        return (*place, event.lowering, event.why, facts, len(event.removed))
    if isinstance(event, NearMiss):
        return (*place, _anonymous(event.reason), event.hint, event.sound)
    if isinstance(event, Verdict):
        return (*place, event.lowering, event.outcome, _anonymous(event.reason), event.script)
    return (*place, _anonymous(event.error))


def _place(where: Where) -> tuple[Hashable, ...]:
    if not where.file:
        return (where.node,)
    return (where.file, where.line, where.code, _anonymous(where.module))


def _anonymous(text: str) -> str:
    return _NUMBER.sub("*", text)


def _natural(part: str) -> tuple[int, str]:
    return (int(part), part) if part.isdecimal() else (0, part)


def _merge_part(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    if not all(part.isdecimal() for part in parts):
        return "{" + ",".join(parts) + "}"
    runs: list[list[int]] = []
    for number in map(int, parts):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(_run(run) for run in runs) + "}"


def _run(run: Sequence[int]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
