"""How much is tried: `make test` takes some of the many variants, `FUSER_EVERY=1` takes all."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

EVERY = os.environ.get("FUSER_EVERY") == "1"


def inner() -> str:
    """What runs the rewritten graph of a test: for every fourth, by its name, `aot_eager`, which
    takes as long as all the rest; under `FUSER_EVERY` for all. Else the graph runs as it is."""
    name = os.environ.get("PYTEST_CURRENT_TEST", "")
    return "aot_eager" if EVERY or zlib.crc32(name.encode()) % 4 == 0 else "eager"


def some(cases: Sequence[T], each: int, start: int = 0) -> Sequence[T]:
    """Every so many of the cases, from `start` on; all of them under `FUSER_EVERY`."""
    return cases if EVERY else cases[start::each]


def crossed(first: Iterable[Any], *others: Iterable[Any]) -> Sequence[tuple[Any, ...]]:
    """Each value of the first axis with one combination of the others, by turns; under
    `FUSER_EVERY`, with all of them."""
    if EVERY:
        return [*itertools.product(first, *others)]
    turns = itertools.cycle(itertools.product(*others))
    return [(one, *more) for one, more in zip(first, turns, strict=False)]
