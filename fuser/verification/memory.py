"""What was taken back to the inner backend, until the process ends."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..events import Verdict
from ..lowering import Emission
from ..pattern import Match
from ..registry import get

_taken_back: dict[Hashable, Verdict] = {}


def is_empty() -> bool:
    """Whether nothing was taken back, as usual."""
    return not _taken_back


def take_back(match: Match, emissions: Sequence[Emission], verdict: Verdict) -> None:
    """Have regions that are equal to a wrong one left alone from now on."""
    _taken_back[_key(match, emissions)] = verdict


def recall(match: Match, emissions: Sequence[Emission]) -> Verdict | None:
    """What was found about an equal region, if that was wrong."""
    return _taken_back.get(_key(match, emissions))


def forget() -> None:
    """Take nothing for wrong any more, as when a kernel was corrected in this process."""
    _taken_back.clear()


def _key(match: Match, emissions: Sequence[Emission]) -> Hashable:
    """Regions are equal that have the same pattern, specs and lowerings. A pattern that is
    registered anew is another one."""
    specs = tuple(call.spec.to_text() for call in match.calls)
    return (get(match.pattern), specs, tuple(emission.name for emission in emissions))
