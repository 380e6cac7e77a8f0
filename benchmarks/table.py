"""Prints results with rich: times and ratios; errors and compile time; memory."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.providers import EAGER, FUSER, INDUCTOR, SDPA
from benchmarks.runner import Measure, Result, error_ratio, spread

NONE = "-"


def show(results: Sequence[Result], title: str, console: Console) -> None:
    """Prints the tables, then the failures in full."""
    names = list(dict.fromkeys(name for r in results for name in r.measures))
    console.print(times(results, title, names))
    console.print(quality(results, title, names))
    console.print(memory(results, title, names))
    for result in results:
        for name, measure in result.measures.items():
            if measure.failure:
                where = f"{result.workload.name} {result.mode} {result.dtype}"
                console.print(f"{where}: {name} failed: {measure.failure}", markup=False)


def times(results: Sequence[Result], title: str, names: Sequence[str]) -> Table:
    """Median (p20-p80) milliseconds and the ratios of paired rounds."""
    table = Table(title=f"{title}: ms, median (p20-p80)")
    for header in ("workload", "mode", "dtype"):
        table.add_column(header, no_wrap=True)
    compared = [(INDUCTOR, FUSER, "fuser over inductor"), (EAGER, FUSER, "over eager")]
    for header in (*names, *(c[2] for c in compared), "time over sdpa", "rewrites"):
        table.add_column(header, justify="right")
    for result in results:
        cells = [_time(result.measures.get(name)) for name in names]
        cells += [_times(result.ratio(slow, fast)) for slow, fast, _ in compared]
        cells.append(_times(result.ratio(FUSER, SDPA)))
        ours = result.measures.get(FUSER)
        cells.append(str(sum(ours.rewrites.values())) if ours else NONE)
        table.add_row(*_labels(result), *cells)
    return table


def quality(results: Sequence[Result], title: str, names: Sequence[str]) -> Table:
    """Errors against fp64 and cold compile seconds."""
    table = Table(title=f"{title}: error against fp64, seconds of a cold compile")
    for header in ("workload", "mode", "dtype"):
        table.add_column(header, no_wrap=True)
    checked = [name for name in names if name != SDPA]
    compiled = [name for name in checked if name != EAGER]
    headers = [f"{name} error" for name in checked]
    headers += [f"{name} / eager" for name in compiled]
    headers += [f"{name} compile" for name in compiled]
    for header in headers:
        table.add_column(header, justify="right")
    for result in results:
        of = result.measures.get
        cells = [_number(m and m.error, ".1e") for m in map(of, checked)]
        cells += [_number(error_ratio(result, name), ".2f") for name in compiled]
        cells += [_number(m and m.compile_s, ".1f") for m in map(of, compiled)]
        table.add_row(*_labels(result), *cells)
    return table


def memory(results: Sequence[Result], title: str, names: Sequence[str]) -> Table:
    """Peak and largest single allocation of one step."""
    table = Table(title=f"{title}: MiB allocated at the peak of a step (largest tensor)")
    for header in ("workload", "mode", "dtype"):
        table.add_column(header, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        cells = [_memory(result.measures.get(name)) for name in names]
        table.add_row(*_labels(result), *cells)
    return table


def _labels(result: Result) -> tuple[str, str, str]:
    return result.workload.name, result.mode, str(result.dtype).removeprefix("torch.")


def _time(measure: Measure | None) -> str:
    if measure is None:
        return NONE
    if measure.failure is not None:
        return "failed"
    if not measure.times_ms:
        return NONE
    low, middle, high = spread(measure.times_ms)
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def _times(ratio: tuple[float, float, float] | None) -> str:
    return NONE if ratio is None else f"{ratio[1]:.2f}x"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _memory(measure: Measure | None) -> str:
    if measure is None or measure.peak_mb is None:
        return NONE
    return f"{measure.peak_mb:.1f} ({measure.largest_mb:.1f})"
