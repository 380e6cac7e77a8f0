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

from .watch import Raised

_SKIPPED = re.compile(r"frame skipped: (?P<name>\S+) \((?P<file>.+) line (?P<line>\d+)\)")
_EXPLANATION = re.compile(r"\bExplanation: (?P<text>[^\n]+)")
_AGAIN = "*** While handling this graph break, another graph break occurred: ***"
_JUMP = "generic_jump"
_BRANCH = "Data-dependent branching. "
_LOOP = "graph break in loop. "
_WHOLE = "; a loop over experts becomes part of the graph by fuser.compile(model)"
_HIT = "; a loop over the experts that were hit becomes part of the graph by fuser.compile(model)"
_ALL = "; if this is a loop over experts, let it run over all of them"
_EVERY = _ALL + ", and use fuser.compile(model)"
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


@dataclass
class GraphBreaks:
    """The graph breaks of some compiles, one line each: `file:line: code: reason`.

    Attributes:
        lines: the lines, and what to do where a loop over experts may be the reason.
        raised: what made Dynamo give up a frame.
        whole: loops were captured whole already, where that worked.
    """

    lines: list[str] = field(default_factory=list)
    raised: list[Raised] = field(default_factory=list)
    whole: bool = False

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
                self.lines.append(_whole_frame(message, told, self.raised))
        if self.whole:
            self.lines = [line.removesuffix(_WHOLE) for line in self.lines]
            for advice in (_HIT, _EVERY):
                self.lines = [_ALL.join(line.rsplit(advice, 1)) for line in self.lines]


def _line(reason: Any) -> str:
    frame = _user_frame(reason.user_stack)
    text = _plain(reason.reason)
    return text if frame is None else f"{_at(frame)}{text}{_advice(text, frame)}"


def _user_frame(stack: Sequence[Any]) -> Any:
    frames = [f for f in stack if not f.filename.startswith(_TORCH)] or stack
    return frames[-1] if frames else None


def _at(frame: Any) -> str:
    code = f"`{frame.line.strip()}`: " if frame.line else ""
    return f"{frame.filename}:{frame.lineno}: {code}"


def _whole_frame(message: str, told: Collection[str], raised: Sequence[Raised]) -> str:
    parts = [part.strip() for part in message.split(_AGAIN)]
    skipped = _SKIPPED.search(parts[-1])
    reason = _plain(parts[-1])
    if len(parts) > 1 and parts[0] not in told:
        reason += f" (first: {_plain(parts[0])})"
    if skipped is None:
        return reason
    stacks = [found.stack for found in raised if found.message.strip() == message.strip()]
    frame = _user_frame(stacks[-1]) if stacks else None
    place = f"{skipped['file']}:{skipped['line']}: " if frame is None else _at(frame)
    advice = _advice(_plain(parts[0]), frame) if _LOOP in reason else ""
    return f"{place}all of `{skipped['name']}` runs in eager: {reason}{advice}"


def _advice(reason: str, frame: Any) -> str:
    """What to do where a break may be that of a loop over experts."""
    over_data = frame is not None and (frame.line or "").lstrip().startswith("for ")
    if reason.startswith(_BRANCH) or "aten.bincount" in reason:
        return _EVERY
    if over_data:
        return _HIT
    return _WHOLE if "aten.nonzero" in reason else ""


def _plain(message: str) -> str:
    """The first line of Dynamo's message, and its explanation."""
    if message.startswith(_JUMP):
        return "a branch depends on the value of a tensor"
    title = message.strip().partition("\n")[0].rstrip(".")
    found = _EXPLANATION.search(message)
    return f"{title}. {found['text']}" if found else title
