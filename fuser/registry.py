"""The registry: which patterns exist, in which order they are tried, where they came from."""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from .errors import DuplicatePatternError, FuserWarning, PatternError
from .pattern import Pattern

ENTRY_POINT_GROUP = "fuser.patterns"
P = TypeVar("P", bound=type[Pattern])


@dataclass(frozen=True)
class Registered:
    """A pattern and where it was defined."""

    pattern: Pattern
    where: str


_lock = threading.RLock()
_patterns: dict[str, Registered] = {}
_discovered = False


def add(pattern: Pattern, where: str) -> None:
    """Register a pattern object.

    Raises:
        PatternError: it has no id, or an id without a family.
        DuplicatePatternError: the id is taken.
    """
    if not isinstance(pattern.id, str) or not pattern.id:
        raise PatternError(f"{type(pattern).__name__} has no id; give it one like 'mine.name'.")
    with _lock:
        if pattern.id in _patterns:
            raise DuplicatePatternError(pattern.id, _patterns[pattern.id].where)
        _patterns[pattern.id] = Registered(pattern, where)


def remove(pattern_id: str) -> None:
    """Unregister a pattern.

    Raises:
        PatternError: there is none with this id.
    """
    with _lock:
        if pattern_id not in _patterns:
            raise PatternError(
                f"no pattern {pattern_id!r} is registered; registered: {', '.join(sorted(_patterns))}."
            )
        del _patterns[pattern_id]


def patterns() -> list[Registered]:
    """All patterns, highest priority first, then in the order of registration."""
    _discover()
    with _lock:
        return sorted(_patterns.values(), key=lambda r: -r.pattern.priority)


@overload
def register_pattern(cls: P, /) -> P: ...
@overload
def register_pattern(cls: None = None, /) -> Callable[[P], P]: ...
def register_pattern(cls: Any = None, /) -> Any:
    """Class decorator that registers a structural `Pattern`."""

    def register(cls: Any) -> Any:
        if not (isinstance(cls, type) and issubclass(cls, Pattern)):
            raise PatternError(f"{cls!r} is not a subclass of fuser.Pattern")
        add(cls(), f"{cls.__module__}.{cls.__qualname__}")
        return cls

    return register if cls is None else register(cls)


def _discover() -> None:
    """Import our own families and third-party packages, once."""
    global _discovered
    with _lock:
        if _discovered:
            return
        _discovered = True
        importlib.import_module("fuser.patterns")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
            if isinstance(loaded, type) and issubclass(loaded, Pattern):
                if loaded.id not in _patterns:
                    add(loaded(), f"entry point {entry.name}")
            elif callable(loaded):
                loaded()
        except Exception as error:  # a plug-in must not break the user's program
            warnings.warn(
                f"the pattern entry point {entry.name!r} ({entry.value}) failed and is ignored: "
                f"{type(error).__name__}: {error}",
                FuserWarning,
                stacklevel=2,
            )
