"""Every error and warning that a user can see, with its wording."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FuserError(Exception):
    """Base class of all errors raised by fuser."""


class FuserWarning(UserWarning):
    """Something was left to the inner backend because of a problem that is ours or a plug-in's."""


class UnknownOptionError(FuserError, ValueError):
    """A `fuser.` option that does not exist."""

    def __init__(self, key: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown option {key!r}.{hint} Known options: {', '.join(known)}.")


class InvalidOptionError(FuserError, ValueError):
    """A `fuser.` option with a value that it does not take."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"option {key!r} is {value!r}; expected {expected}.")


class UnknownBackendError(FuserError, ValueError):
    """`fuser.inner` names a backend that torch.compile does not know."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(
            f"option 'fuser.inner' names the backend {name!r}, which is not registered.{hint} "
            f"Registered: {', '.join(known)}."
        )


class PatternError(FuserError):
    """A pattern that cannot be registered as it was given."""


class DuplicatePatternError(PatternError, ValueError):
    """Two patterns with one id."""

    def __init__(self, pattern_id: str, where: str) -> None:
        super().__init__(
            f"a pattern with the id {pattern_id!r} is registered already (by {where}); "
            "choose another id, or call fuser.unregister_pattern first."
        )


class ReplacementMismatchError(FuserError):
    """A replacement whose outputs differ from what it replaces."""

    def __init__(self, pattern_id: str, index: int, what: str, old: object, new: object) -> None:
        super().__init__(
            f"the replacement of pattern {pattern_id!r} changes the {what} of output {index}: "
            f"the original has {old}, the replacement {new}."
        )


class CoverageError(FuserError, AssertionError):
    """`Report.expect` found another number of rewrites."""
