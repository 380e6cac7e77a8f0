"""Graph breaks in plain words: where Dynamo gave up, and why.

A region that lies on both sides of a graph break is in no graph, so nobody can match it; the report
names the breaks because of that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

_SKIPPED = re.compile(r"frame skipped: (?P<name>\S+) \((?P<file>.+) line (?P<line>\d+)\)")
_EXPLANATION = re.compile(r"\bExplanation: (?P<text>[^\n]+)")
_AGAIN = "*** While handling this graph break, another graph break occurred: ***"
_JUMP = "generic_jump"
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


@dataclass
class GraphBreaks:
    """The graph breaks of some compiles, one line each: `file:line: code: reason`."""

    lines: list[str] = field(default_factory=list)

    def collect(self, reasons: Sequence[Any], unsupported: Sequence[str]) -> None:
        """Takes what Dynamo noted down.

        Args:
            reasons: its `GraphCompileReason` objects: a graph ended here, another begins.
            unsupported: messages that were raised; those of a `reason` are among them, the others
                made Dynamo give up a whole frame.
        """
        self.lines += [_line(reason) for reason in reasons]
        told = {reason.reason for reason in reasons}
        if any(reason.startswith(_JUMP) for reason in told):
            told |= {m for m in unsupported if m.startswith("Data-dependent branching")}
        for message in unsupported:
            longer = any(m != message and m.startswith(message) for m in unsupported)
            if message not in told and not longer:
                self.lines.append(_whole_frame(message, told))


def _line(reason: Any) -> str:
    stack = [f for f in reason.user_stack if not f.filename.startswith(_TORCH)] or reason.user_stack
    if not stack:
        return _plain(reason.reason)
    frame = stack[-1]
    code = f"`{frame.line.strip()}`: " if frame.line else ""
    return f"{frame.filename}:{frame.lineno}: {code}{_plain(reason.reason)}"


def _whole_frame(message: str, told: Collection[str]) -> str:
    parts = [part.strip() for part in message.split(_AGAIN)]
    skipped = _SKIPPED.search(parts[-1])
    reason = _plain(parts[-1])
    if len(parts) > 1 and parts[0] not in told:
        reason += f" (first: {_plain(parts[0])})"
    if skipped is None:
        return reason
    place = f"{skipped['file']}:{skipped['line']}"
    return f"{place}: all of `{skipped['name']}` runs in eager: {reason}"


def _plain(message: str) -> str:
    """The first line of Dynamo's message, and its explanation."""
    if message.startswith(_JUMP):
        return "a branch depends on the value of a tensor"
    title = message.strip().partition("\n")[0].rstrip(".")
    found = _EXPLANATION.search(message)
    return f"{title}. {found['text']}" if found else title
