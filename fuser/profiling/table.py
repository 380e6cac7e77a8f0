"""A profile as text: a row for each region, equal ones together, and the step below."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from ..report.text import short

if TYPE_CHECKING:
    from .result import Cost, Profile, Row, Step

WIDTH = 140
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def render(profile: Profile) -> str:
    """The profile as a string."""
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, highlight=False)
    for line in _head(profile):
        console.print(line)
    console.print(_table(profile))
    for line in _foot(profile):
        console.print(line)
    if profile.kernels is not None:
        console.print(str(profile.kernels), soft_wrap=True)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def amount(number: float | None) -> str:
    """A number with three digits and a unit's prefix."""
    if number is None:
        return ""
    for unit, letter in _UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return f"{number:.3g}"


def _head(profile: Profile) -> Iterator[str]:
    machine = profile.machine
    rates = ", ".join(f"{amount(rate)}FLOP/s in {name}" for name, rate in machine.flops.items())
    what = "PREDICTED, nothing was measured:" if profile.predicted else "measured on"
    of = "forward and backward" if profile.training else "forward"
    yield f"{of}, {what} {machine.name}"
    kind = "peaks as its maker gives them" if profile.predicted else "peaks as measured here"
    yield f"{kind}: {amount(machine.bytes)}B/s, {rates}"
    yield ""


def _table(profile: Profile) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for name in ("region", "at"):
        table.add_column(name, overflow="fold")
    for name in ("FLOP", "byte", "FLOP/B", "limit ms"):
        table.add_column(name, justify="right")
    table.add_column("bound by")
    if not profile.predicted:
        for name in ("ms", "of peak", "Inductor ms", "of peak"):
            table.add_column(name, justify="right")
    for row, count in profile.folded():
        table.add_row(*_cells(row, count, predicted=profile.predicted))
    return table


def _cells(row: Row, count: int, *, predicted: bool) -> list[str]:
    times = f" ×{count}" if count > 1 else ""  # noqa: RUF001
    place = f"{os.path.basename(row.where.file)}:{row.where.line}" if row.where.file else ""
    lowering = f"\n{row.lowering}" if row.lowering and not predicted else ""
    problem = f"\nnot by itself: {row.problem}" if row.problem else ""
    ours, theirs = row.ours, row.inductor
    cells = [f"{row.name}{times}{lowering}{problem}", place, *_work(ours)]
    return cells if predicted else [*cells, *_time(ours), *_time(theirs)]


def _work(cost: Cost) -> list[str]:
    intensity = "" if cost.intensity is None else f"{cost.intensity:.3g}"
    limit = "" if cost.limit_ms is None else f"{cost.limit_ms:.3g}"
    return [amount(cost.flops), amount(cost.bytes), intensity, limit, cost.bound]


def _time(cost: Cost) -> list[str]:
    share = "" if cost.share is None else f"{cost.share:.0%}"
    return ["" if cost.ms is None else f"{cost.ms:.3f}", share]


def _foot(profile: Profile) -> Iterator[str]:
    for problem in profile.problems:
        yield f"left out: {problem}"
    if not profile.rows and not profile.problems:
        yield "No graph reached the backend: Dynamo captured nothing, or is switched off."
    elif profile.predicted:
        total = profile.ours.limit_ms
        yield f"predicted step, at the least: {total:.3g} ms (the sum of the rows; limits)"
        launches = sum(row.ours.launches for row in profile.rows)
        asking = 1e3 * launches * profile.machine.launch
        if any(row.ours.bound == "launch" for row in profile.rows):
            yield (
                f"asking for {launches} kernels takes {asking:.3g} ms beside that, "
                "where no CUDA graph has them"
            )
    elif profile.rows:
        yield _step("as rewritten  ", profile.ours)
        yield _step("plain Inductor", profile.inductor)
    for line in profile.report.breaks:
        yield f"graph break: {short(line)}"


def _step(name: str, step: Step) -> str:
    between = step.between_ms or 0.0
    word = "lost between kernels" if between >= 0 else "less: what is fused across parts"
    return (
        f"{name}  step {step.ms or 0.0:.3f} ms = parts {step.parts_ms or 0.0:.3f} ms "
        f"{'+' if between >= 0 else '-'} {abs(between):.3f} ms {word}"
    )
