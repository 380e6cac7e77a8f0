"""Verdicts of verification as data, and the regions that they are about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..events import Compared, Failure, NearMiss, Rewritten, Verdict

Region = tuple[int, str, str, str]
"""Graph, body, pattern, and the node at which it is found."""


def region_of(event: Rewritten | NearMiss | Failure | Verdict) -> Region:
    """The region of an event, the same for its rewrite and the verdict on it."""
    return event.graph, event.body, event.pattern, event.where.node


def by_region(verdicts: Sequence[Verdict]) -> dict[Region, Verdict]:
    """Each verdict by its region."""
    return {region_of(verdict): verdict for verdict in verdicts}


def verdict_data(verdict: Verdict) -> dict[str, Any]:
    """A verdict as data that JSON can hold; see `Report.to_json`."""
    return {**asdict(verdict), "compared": compared_data(verdict.compared)}


def compared_data(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Comparisons as data that JSON can hold: an error that is infinite is None."""
    return [_compared(value) for value in compared]


def _compared(compared: Compared) -> dict[str, Any]:
    data = asdict(compared)
    for name in ("error", "original", "allowed"):
        data[name] = data[name] if math.isfinite(data[name]) else None
    data["worst"] = list(compared.worst)
    return data
