"""fuser: a torch.compile backend that finds, proves and fuses attention, experts and norm chains.

    torch.compile(model, backend="fuser")

Everything public is here; the reports and the testing tools are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .pattern import Decline, Match, Pattern
from .registry import PatternHandle, patterns_enabled, register_pattern, unregister_pattern

if TYPE_CHECKING:
    from .report.debug import debug
    from .report.explain import explain
    from .report.report import Report

__version__ = "0.1.0"

__all__ = [
    "Decline",
    "Match",
    "Pattern",
    "PatternHandle",
    "Report",
    "debug",
    "explain",
    "patterns_enabled",
    "register_pattern",
    "unregister_pattern",
]

_LAZY = {"Report": "report.report", "debug": "report.debug", "explain": "report.explain"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    globals()[name] = found
    return found
