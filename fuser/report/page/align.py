"""A graph before and after, side by side."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

Pair = tuple[int, int]
"""Positions before and after; -1 where there is none."""


def aligned(before: Sequence[str], after: Sequence[str]) -> list[Pair]:
    """Rows of a side-by-side diff of nodes by name.

    Nodes that are in both stand in one row; what went and what came between two of those stand
    beside each other.

    Args:
        before, after: names of nodes, each at most once on a side.
    """
    place = {name: i for i, name in enumerate(after)}
    common = [(b, place[name]) for b, name in enumerate(before) if name in place]
    rows: list[Pair] = []
    previous: Pair = (-1, -1)
    for b, a in [*_increasing(common), (len(before), len(after))]:
        rows += _between(range(previous[0] + 1, b), range(previous[1] + 1, a))
        rows.append((b, a))
        previous = (b, a)
    return rows[:-1]


def _between(gone: Sequence[int], come: Sequence[int]) -> Iterator[Pair]:
    for i in range(max(len(gone), len(come))):
        yield gone[i] if i < len(gone) else -1, come[i] if i < len(come) else -1


def _increasing(pairs: Sequence[Pair]) -> list[Pair]:
    """The longest part of them that has both positions in order: a node that was moved is one that
    went and one that came."""
    tails: list[int] = []
    ends: list[int] = []
    links: list[int] = []
    for index, (_, a) in enumerate(pairs):
        at = bisect_left(tails, a)
        links.append(ends[at - 1] if at else -1)
        tails[at : at + 1] = [a]
        ends[at : at + 1] = [index]
    found: list[Pair] = []
    index = ends[-1] if ends else -1
    while index >= 0:
        found.append(pairs[index])
        index = links[index]
    return found[::-1]
