"""Options of the backend: `fuser.*` keys of `options=` and their `FUSER_*` environment variables.

| key              | values                                    | default    |
| ---------------- | ----------------------------------------- | ---------- |
| fuser.policy     | auto, always                              | auto       |
| fuser.lowering   | auto, triton, aten, reference             | auto       |
| fuser.inner      | inductor or any registered backend        | inductor   |
| fuser.patterns   | ids or globs to allow, `-` to exclude     | all        |
| fuser.atomics    | bool: gradients by atomic additions       | false      |
| fuser.dense_moe  | bool: all experts of a token to its own   | true       |
| fuser.verify     | bool: compare each region with fp64       | false      |
| fuser.debug      | bool, or a directory to write reports to  | false      |
| fuser.strict     | bool: our own failures raise              | false      |
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from .errors import InvalidOptionError, UnknownOptionError, warn_of_variable

PREFIX, VARIABLE = "fuser.", "FUSER_"
LOG = "1"
"""The target of `fuser.debug` that means the log."""
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


class Policy(Enum):
    """When a sound match is rewritten."""

    AUTO = "auto"
    """Only where it pays."""
    ALWAYS = "always"
    """Wherever it is sound, whatever it costs; for tests."""


class LoweringChoice(Enum):
    """Which kind of lowering may be used."""

    AUTO = "auto"
    TRITON = "triton"
    ATEN = "aten"
    REFERENCE = "reference"


def matches(pattern_id: str, glob: str) -> bool:
    """Whether a glob means a pattern: by its id, or by its family, `attention` or `mine`."""
    return fnmatchcase(pattern_id, glob) or pattern_id.partition(".")[0] == glob


@dataclass(frozen=True)
class Options:
    """Options of one compile, parsed and checked."""

    policy: Policy = Policy.AUTO
    lowering: LoweringChoice = LoweringChoice.AUTO
    inner: str = "inductor"
    patterns: tuple[str, ...] = ()
    atomics: bool = False
    dense_moe: bool = True
    """Mixtures that run every expert for every token become those that run the chosen ones, where a
    NaN or infinity of another expert, times zero, is not in the result any more."""
    verify: bool = False
    """Regions are compared with fp64 before they are rewritten, and left where they are wrong."""
    debug: str = ""
    """Empty: off. "1": print a text diff to the log. Anything else: a directory for reports."""
    strict: bool = False

    @staticmethod
    def parse(
        options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> tuple[Options, dict[str, Any]]:
        """Split `options=` of torch.compile into ours and the inner backend's.

        Args:
            options: what the user passed; keys that begin with `fuser.` are ours.
            environ: where `FUSER_*` is looked up; an explicit option wins over it.

        Returns:
            our options, and the remaining ones untouched.

        Raises:
            UnknownOptionError: a `fuser.` key that does not exist; names the nearest.
            InvalidOptionError: a value of the wrong kind.
        """
        environ = os.environ if environ is None else environ
        names = [f.name for f in fields(Options)]
        if not isinstance(options, (Mapping, type(None))):
            raise InvalidOptionError("options", options, "a dict")
        given = _from_environment(environ, names, options or {})
        rest: dict[str, Any] = {}
        for key, value in (options or {}).items():
            if not isinstance(key, str) or not key.startswith(PREFIX):
                rest[key] = value
                continue
            name = key.removeprefix(PREFIX)
            if name not in names:
                raise UnknownOptionError(key, (PREFIX + n for n in names))
            given[name] = _convert(name, value, key)
        return replace(Options(), **given), rest

    def allows(self, pattern_id: str) -> bool:
        """Whether `fuser.patterns` lets this pattern run."""
        wanted = [p for p in self.patterns if not p.startswith("-")]
        denied = [p[1:] for p in self.patterns if p.startswith("-")]
        allowed = not wanted or any(matches(pattern_id, p) for p in wanted)
        return allowed and not any(matches(pattern_id, p) for p in denied)


def _from_environment(
    environ: Mapping[str, str], names: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Options by name from `FUSER_*`; an empty variable is none, one that an option overrides is
    not looked at, and one that is nearly an option's is warned about."""
    given: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(VARIABLE) or not text:
            continue
        name = variable.removeprefix(VARIABLE).lower()
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
            if near:
                warn_of_variable(variable, VARIABLE + near[0].upper())
        elif PREFIX + name not in options:
            given[name] = _convert(name, text, variable)
    return given


def _convert(name: str, value: Any, key: str) -> Any:
    if name == "policy":
        return _enum(Policy, value, key)
    if name == "lowering":
        return _enum(LoweringChoice, value, key)
    if name == "inner":
        if not isinstance(value, str) or not value:
            raise InvalidOptionError(key, value, "the name of a registered backend")
        return value
    if name == "patterns":
        return _globs(value, key)
    if name == "debug":
        return debug_target(value, key)
    return _boolean(value, key)


def debug_target(value: Any, key: str) -> str:
    """Where debug reports go: "" nowhere, "1" to the log, else a directory.

    Raises:
        InvalidOptionError: neither a path nor a boolean.
    """
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, str):
        lowered = value.lower()
        return "" if lowered in _FALSE else "1" if lowered in _TRUE else value
    if isinstance(value, bool) or value in (0, 1):
        return "1" if value else ""
    raise InvalidOptionError(key, value, "a directory or a boolean")


def _enum(kind: type[Enum], value: Any, key: str) -> Enum:
    if isinstance(value, kind):
        return value
    try:
        return kind(str(value).lower())
    except ValueError:
        expected = "one of " + ", ".join(repr(m.value) for m in kind)
        raise InvalidOptionError(key, value, expected) from None


def _globs(value: Any, key: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(p.strip() for p in value.split(",") if p.strip())
    if isinstance(value, Sequence) and all(isinstance(p, str) for p in value):
        return tuple(value)
    raise InvalidOptionError(key, value, "a pattern id or glob, or a list of them")


def _boolean(value: Any, key: str) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise InvalidOptionError(key, value, "a boolean")
