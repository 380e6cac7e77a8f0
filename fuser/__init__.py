"""fuser: a torch.compile backend that finds, proves and fuses attention, experts and norm chains.

    torch.compile(model, backend="fuser")

Everything public is here and loaded when it is first used, so that the import itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import testing
    from .compiler import compile
    from .errors import (
        CoverageError,
        DuplicatePatternError,
        FuserError,
        FuserWarning,
        InvalidOptionError,
        PatternError,
        UnknownBackendError,
        UnknownOptionError,
        VerificationError,
    )
    from .pattern import Decline, Match, Pattern
    from .profiling.profile import profile
    from .profiling.result import Profile
    from .registry import PatternHandle, patterns_enabled, register_pattern, unregister_pattern
    from .report.debug import debug
    from .report.explain import explain
    from .report.report import Report
    from .verification.verify import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "CoverageError",
    "Decline",
    "DuplicatePatternError",
    "FuserError",
    "FuserWarning",
    "InvalidOptionError",
    "Match",
    "Pattern",
    "PatternError",
    "PatternHandle",
    "Profile",
    "Report",
    "UnknownBackendError",
    "UnknownOptionError",
    "Verification",
    "VerificationError",
    "compile",
    "debug",
    "explain",
    "patterns_enabled",
    "profile",
    "register_pattern",
    "testing",
    "unregister_pattern",
    "verify",
]

_LAZY = {
    "CoverageError": "errors",
    "Decline": "pattern",
    "DuplicatePatternError": "errors",
    "FuserError": "errors",
    "FuserWarning": "errors",
    "InvalidOptionError": "errors",
    "Match": "pattern",
    "Pattern": "pattern",
    "PatternError": "errors",
    "PatternHandle": "registry",
    "Profile": "profiling.result",
    "Report": "report.report",
    "UnknownBackendError": "errors",
    "UnknownOptionError": "errors",
    "Verification": "verification.verify",
    "VerificationError": "errors",
    "compile": "compiler",
    "debug": "report.debug",
    "explain": "report.explain",
    "patterns_enabled": "registry",
    "profile": "profiling.profile",
    "register_pattern": "registry",
    "unregister_pattern": "registry",
    "verify": "verification.verify",
}


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module(".testing", __name__)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
