"""Notes what is launched, where that is wanted: entries of a catalogue, each once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class Entry(Protocol):
    """A kernel by description."""

    def to_json(self) -> str: ...


E = TypeVar("E", bound=Entry)


class Recorder(Generic[E]):
    """Entries of one kind, while somebody listens."""

    def __init__(self) -> None:
        self._found: dict[str, E] | None = None

    @property
    def listens(self) -> bool:
        return self._found is not None

    @contextmanager
    def recording(self) -> Generator[dict[str, E]]:
        """Within the block, entries of what is launched are collected, by their text."""
        before, self._found = self._found, {}
        try:
            yield self._found
        finally:
            self._found = before

    def note(self, entry: E) -> None:
        if self._found is not None:
            self._found.setdefault(entry.to_json(), entry)
