"""The report as text: a unified diff of each rewrite, then near misses, failures, graph breaks.

Every line is made as a `Line` first, so that wrapping, which keeps continuation lines under the
text they belong to, and colour are done in one place.
"""

from __future__ import annotations

import io
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..events import Compared, Failure, NearMiss, Rewritten, Verdict, Where
from .fold import Folded, fold

if TYPE_CHECKING:
    from .report import Report

WIDTH = 100
_LABEL = 12
OUTCOMES = {
    "verified": ("verified", "green"),
    "wrong": ("taken back", "red"),
    "unverified": ("not verified", "yellow"),
}
"""What is said of each outcome of a verification, and its style."""
_INSTALLED = re.compile(r"/[^\s`']*/site-packages/")


@dataclass(frozen=True)
class Line:
    """One line before wrapping; continuation lines are indented by `hang`."""

    text: str = ""
    style: str = ""
    hang: int = 0
    crop: bool = False
    """Cut off at the width instead of wrapping: a quotation of the user's code."""

    def wrapped(self) -> Iterator[str]:
        if len(self.text) <= WIDTH:
            yield self.text
        elif self.crop:
            yield self.text[: WIDTH - 1] + "…"
        else:
            yield from textwrap.wrap(
                self.text,
                WIDTH,
                subsequent_indent=" " * self.hang,
                drop_whitespace=True,
                break_on_hyphens=False,
            )


def render(report: Report, color: bool = False) -> str:
    """The report as a string, with ANSI escape codes if `color`."""
    return _rendered(styled(report), color)


def render_verdicts(report: Report) -> str:
    """What verification found alone, as a string."""
    return _rendered(styled_verdicts(report), color=False)


def _rendered(text: Text, color: bool) -> str:
    out = io.StringIO()
    console = Console(
        file=out,
        width=WIDTH,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
    )
    console.print(text, soft_wrap=True, end="")
    return out.getvalue()


def styled(report: Report) -> Text:
    """The report as a rich text."""
    return _joined(_lines(report))


def styled_verdicts(report: Report) -> Text:
    """What verification found alone, as a rich text."""
    end = Line(summary(report), "bold", hang=7)
    return _joined([*_verdicts(report), *_uncaptured(report), end])


def _joined(lines: Iterable[Line]) -> Text:
    text = Text()
    for line in lines:
        for part in line.wrapped():
            text.append(part + "\n", line.style or None)
    return text


def short(path: str) -> str:
    """A file's path as a person knows it: from the working directory, or from site-packages.

    In a text, all of those that it speaks of.
    """
    here = os.path.join(os.getcwd(), "")
    return _INSTALLED.sub("", path).removeprefix(here)


def table(compared: Sequence[Compared]) -> str:
    """The errors of a region's values, beside those of its original."""
    return "\n".join(line.text for line in _table(compared))


def summary(report: Report) -> str:
    """One line: counts, graphs, nodes, milliseconds."""
    parts = [_many(report.count(), "region") + " rewritten"]
    if report.left:
        parts.append(f"{len(report.left)} proved but left")
    if report.declined:
        parts.append(f"{len(report.declined)} declined")
    if report.failures:
        parts.append(_many(len(report.failures), "failure"))
    outcomes = Counter(verdict.outcome for verdict in report.verdicts)
    parts += [f"{outcomes[name]} {said}" for name, (said, _) in OUTCOMES.items() if outcomes[name]]
    if report.breaks:
        parts.append(_many(len(report.breaks), "graph break"))
    size = f"{_many(report.graphs, 'graph')}, {_many(report.nodes, 'node')}"
    return f"fuser: {', '.join(parts)} ({size}, {report.seconds * 1e3:.1f} ms)"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lines(report: Report) -> Iterator[Line]:
    for rewrite in fold(report.rewritten):
        yield from _rewrite(rewrite)
    left = "PROVED, LEFT TO THE INNER BACKEND"
    for miss in fold(report.left):
        yield from _miss(miss, left, "cyan")
    for miss in fold(report.declined):
        yield from _miss(miss, "DECLINED", "yellow")
    for failure in fold(report.failures):
        yield from _failure(failure)
    yield from _verdicts(report)
    yield from _uncaptured(report)
    if report.graphs and not (
        report.rewritten or report.near_misses or report.failures or report.verdicts
    ):
        yield Line("Nothing that a pattern looks for was found.")
    yield Line(summary(report), "bold", hang=7)


def _uncaptured(report: Report) -> Iterator[Line]:
    """Where graphs break, and that there is none."""
    yield from _breaks(report.breaks)
    if report.graphs == 0:
        yield Line("No graph reached the backend: Dynamo captured nothing, or is switched off.")


def _rewrite(folded: Folded[Rewritten]) -> Iterator[Line]:
    rewrite = folded.first
    title = "REWRITTEN" if rewrite.count else "SPELLED OUT"
    yield Line(f"{title}  {rewrite.pattern}{folded.times}", "bold")
    yield from _place(rewrite.where, folded.module)
    for name, fact in rewrite.facts.items():
        yield _field(name, fact)
    yield _field("lowering", rewrite.lowering)
    yield _field("because", rewrite.why)
    yield from _diff(rewrite, len(folded.events))
    yield Line()


def _diff(rewrite: Rewritten, times: int) -> Iterator[Line]:
    removed, added = _many(len(rewrite.removed), "node"), len(rewrite.added)
    which = f", the first of {times}" if times > 1 else ""
    head = f"@@ graph {rewrite.graph}{which}: {removed} removed, {added} added @@"
    yield Line(head, "cyan")
    before: tuple[str, int] | None = None
    for i, fx in enumerate(rewrite.removed):
        where = rewrite.sources[i] if i < len(rewrite.sources) else None
        if where is not None and where.file and (where.file, where.line) != before:
            before = (where.file, where.line)
            name = os.path.basename(where.file)
            yield Line(f"  # {name}:{where.line}  {where.code}", "dim", crop=True)
        yield Line(f"- {fx}", "red", hang=6)
    for fx in rewrite.added:
        yield Line(f"+ {fx}", "green", hang=6)


def _miss(folded: Folded[NearMiss], title: str, style: str) -> Iterator[Line]:
    miss = folded.first
    yield Line(f"{title}  {miss.pattern}{folded.times}", f"bold {style}")
    yield from _place(miss.where, folded.module)
    yield _field("node", miss.where.node)
    yield _field("because", miss.reason)
    if miss.hint:
        yield _field("hint", miss.hint)
    yield Line()


def _failure(folded: Folded[Failure]) -> Iterator[Line]:
    failure = folded.first
    yield Line(f"FAILED  {failure.pattern}{folded.times}", "bold red")
    yield from _place(failure.where, folded.module)
    yield _field("error", failure.error)
    yield Line()


def _verdicts(report: Report) -> Iterator[Line]:
    for verdict in fold(report.verdicts):
        yield from _verdict(verdict)


def _verdict(folded: Folded[Verdict]) -> Iterator[Line]:
    verdict = folded.first
    title, style = OUTCOMES[verdict.outcome]
    yield Line(f"{title.upper()}  {verdict.pattern}{folded.times}", f"bold {style}")
    yield from _place(verdict.where, folded.module)
    yield _field("lowering", verdict.lowering)
    if verdict.reason:
        yield _field("because", verdict.reason)
    if verdict.script:
        yield _field("script", verdict.script)
    yield from _table(_widest(folded))
    yield Line()


def _widest(folded: Folded[Verdict]) -> Sequence[Compared]:
    """Of equal regions, the comparison that came nearest to what is allowed."""
    each = [event.compared for event in folded.events]
    return max(each, key=lambda found: max((c.error / (c.allowed or 1) for c in found), default=0))


def _table(compared: Sequence[Compared]) -> Iterator[Line]:
    if not compared:
        return
    names = ["against fp64", *(c.name for c in compared)]
    width = max(map(len, names))
    yield Line(f"  {names[0]:<{width}}  {'ours':>9}  {'original':>9}  {'allowed':>9}", "dim")
    for c in compared:
        figures = f"{c.error:9.2e}  {c.original:9.2e}  {c.allowed:9.2e}"
        wrong = f"  <- at {list(c.worst)}" if c.problem else ""
        yield Line(f"  {c.name:<{width}}  {figures}{wrong}", "red" if c.problem else "", hang=4)


def _breaks(breaks: Sequence[str]) -> Iterator[Line]:
    if not breaks:
        return
    yield Line("GRAPH BREAKS  what lies on both sides of one cannot be matched", "bold yellow")
    for line, times in Counter(map(short, breaks)).items():
        again = f"×{times} " if times > 1 else ""  # noqa: RUF001
        yield Line(f"  {again}{line}", hang=4)
    yield Line()


def _place(where: Where, module: str) -> Iterator[Line]:
    place = f"{short(where.file)}:{where.line}" if where.file else f"node {where.node}"
    yield _field("at", place)
    if where.code:
        yield Line(" " * _LABEL + where.code, crop=True)
    if module:
        yield _field("in", module)


def _field(name: str, text: str) -> Line:
    return Line(f"  {name:<{_LABEL - 3}} {text}", hang=_LABEL)
