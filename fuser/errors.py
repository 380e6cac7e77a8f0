"""Every error and warning that a user can see, with its wording."""

from __future__ import annotations

import difflib
import traceback
import warnings
from collections.abc import Iterable


class FuserError(Exception):
    """Base class of all errors raised by fuser."""


class FuserWarning(UserWarning):
    """Something was left to the inner backend because of a problem that is ours or a plug-in's."""


class NotWhole(Exception):
    """A graph is not worth, or not sure, to be compiled as it was captured; it is captured again as
    `torch.compile` does, and `explain` tells why.

    Attributes:
        reason: why.
        place: `file:line: code` of a loop that is the reason.
        hint: what the user could do.
    """

    def __init__(self, reason: str, place: str = "", hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.place, self.hint = reason, place, hint


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


def warn_of_variable(given: str, meant: str) -> None:
    """An environment variable that is no option's, but looks like one."""
    warnings.warn(
        f"the environment variable {given} is not one of fuser's and has no effect; did you mean "
        f"{meant}?",
        FuserWarning,
        stacklevel=2,
    )


def warn_of_pattern(entry: str, known: Iterable[str]) -> None:
    """An entry of `fuser.patterns` that means no pattern."""
    known = sorted(known)
    near = difflib.get_close_matches(entry.removeprefix("-"), known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    warnings.warn(
        f"{entry!r} in fuser.patterns matches no registered pattern.{hint} "
        f"Registered: {', '.join(known)}.",
        FuserWarning,
        stacklevel=2,
    )


class PatternError(FuserError):
    """A pattern that cannot be registered as it was given."""


class UntraceablePatternError(PatternError):
    """`find` or `replace` could not be recorded as a graph."""

    def __init__(self, pattern_id: str, role: str, error: BaseException) -> None:
        super().__init__(
            f"pattern {pattern_id!r}: `{role}` could not be traced: {first_sentence(error)}"
            f"{_untraceable_hint(error)}"
        )


class UnrunnablePatternError(PatternError):
    """`find` or `replace` fails on the example inputs."""

    def __init__(self, pattern_id: str, role: str, step: str, error: BaseException) -> None:
        super().__init__(
            f"pattern {pattern_id!r}: `{role}` fails on the example inputs, at `{step}`: "
            f"{first_sentence(error)} Give examples that the function accepts; values that depend "
            "on the content of a tensor (item(), nonzero(), boolean indexing) are not supported."
        )


def first_sentence(error: BaseException) -> str:
    """The first line of an exception, with a full stop."""
    text = f"{type(error).__name__}: {error}".split("\n", 1)[0].rstrip(": ")
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _untraceable_hint(error: BaseException) -> str:
    """What to do about an exception while tracing; nothing where it is the function's own."""
    passed = modules_passed(error)
    raised_by_fx = bool(passed) and passed[-1].startswith("torch.fx")
    in_module = any(name.startswith("torch.nn.modules") for name in passed)
    if raised_by_fx and (isinstance(error, NameError) or in_module):
        return " Pass weights and modules' parameters as arguments; call F.linear, not a module."
    if raised_by_fx or "Proxy" in str(error):
        return (
            " Write it as straight-line PyTorch over its arguments: no `if`, assert, loop, len(), "
            "float() or item() that depends on a tensor or on an argument (give the condition as "
            "where=, or register one pattern a case instead)."
        )
    return ""


def modules_passed(error: BaseException) -> list[str]:
    """The Python modules that an exception went through, where it was raised last."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


class PatternOutputsError(PatternError):
    """`find` and `replace` disagree in what they return for the example inputs."""

    def __init__(self, pattern_id: str, what: str, found: object, replaced: object) -> None:
        super().__init__(
            f"pattern {pattern_id!r}: `find` and `replace` differ in {what} for the example "
            f"inputs: `find` gives {found}, `replace` {replaced}."
        )


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


class UnknownArchitectureError(FuserError, ValueError):
    """A GPU architecture that kernels are not compiled for."""

    def __init__(self, arch: str, known: Iterable[str]) -> None:
        known = list(known)
        near = difflib.get_close_matches(arch, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown architecture {arch!r}.{hint} Known: {', '.join(known)}.")


class InterpreterModeError(FuserError, RuntimeError):
    """Compiling a kernel where triton interprets kernels."""

    def __init__(self) -> None:
        super().__init__(
            "triton was imported in its interpreter mode (TRITON_INTERPRET=1), in which no kernel "
            "can be compiled. Unset the variable before Python starts, or use "
            "fuser.lowering.triton.pool.compile_all or `python -m fuser kernels`, which compile in "
            "processes of their own."
        )


class TritonMissingError(FuserError, ImportError):
    """Something that needs triton, without it."""

    def __init__(self) -> None:
        super().__init__("triton is not installed: `pip install triton` (Linux only).")


class MissingExtraError(FuserError, ImportError):
    """Something that needs an optional dependency, without it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed: `pip install torch-fuser[{extra}]`, or {package} alone."
        )


class CatalogueError(FuserError, ValueError):
    """A file of kernels with a line that describes none."""

    def __init__(self, path: object, number: int, error: BaseException) -> None:
        super().__init__(f"{path}, line {number}, is no kernel's entry: {first_sentence(error)}")


class CoverageError(FuserError, AssertionError):
    """`Report.expect` found another number of rewrites."""


class VerificationError(FuserError, AssertionError):
    """`Verification.expect` found a region that is wrong, or another number of right ones."""
