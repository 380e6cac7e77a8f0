"""Prints results with rich.

`show`: a line a workload; times and ratios, errors and compile time, memory.
`show_each`: a line a provider, where there are too many of them for columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Measure, Result, Spread, error_ratio, spread
from benchmarks.limits import Rates
from benchmarks.providers import EAGER, FUSER, INDUCTOR, OURS, SDPA

NONE = "-"


def show(results: Sequence[Result], title: str, console: Console) -> None:
    """Prints the tables, then the failures in full."""
    names = list(dict.fromkeys(name for r in results for name in r.measures))
    console.print(times(results, title, names))
    console.print(quality(results, title, names))
    console.print(memory(results, title, names))
    failures(results, console)


def show_each(results: Sequence[Result], title: str, console: Console, rates: Rates | None) -> None:
    """Prints one table with everything, then the failures in full."""
    console.print(providers(results, title, rates))
    failures(results, console)


def failures(results: Sequence[Result], console: Console) -> None:
    """Prints every failure in full."""
    for result in results:
        for name, measure in result.measures.items():
            if measure.failure:
                where = f"{result.workload.name} {result.mode} {result.dtype}"
                console.print(f"{where}: {name} failed: {measure.failure}", markup=False)


COLUMNS = (
    "ms, median (p20-p80)", "of limit", "over inductor", "over best peer", "error", "/ eager",
    "peak MiB", "cold s", "warm s", "rewrites",
)  # fmt: skip


def providers(results: Sequence[Result], title: str, rates: Rates | None) -> Table:
    """Every figure of every provider."""
    table = Table(title=f"{title}: errors against fp64, memory of a step, seconds to compile")
    for header in ("workload", "mode", "dtype", "provider"):
        table.add_column(header, no_wrap=True)
    for header in COLUMNS:
        table.add_column(header, justify="right")
    for result in results:
        labels = _labels(result)
        for name, measure in result.measures.items():
            table.add_row(*labels, name, *_line(result, name, measure, rates))
            labels = ("", "", "")
        table.add_section()
    return table


def _line(result: Result, name: str, measure: Measure, rates: Rates | None) -> list[str]:
    share = result.share_of_limit(name, rates)
    best = result.best_peer()
    against = result.ratio(best, name) if best and name in OURS else None
    return [
        _time(measure, digits=3),
        NONE if share is None else f"{share[1]:.0%}",
        _times(result.ratio(INDUCTOR, name)),
        _times(against),
        _number(measure.error, ".1e"),
        _number(error_ratio(result, name), ".2f"),
        _number(measure.peak_mb, ".1f"),
        _number(measure.compile_s, ".1f"),
        _number(measure.warm_s, ".1f"),
        str(sum(measure.rewrites.values())) if name in OURS else NONE,
    ]


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


def _time(measure: Measure | None, digits: int = 1) -> str:
    if measure is None:
        return NONE
    if measure.failure is not None:
        return "failed"
    if not measure.times_ms:
        return NONE
    low, middle, high = spread(measure.times_ms)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _times(ratio: Spread | None) -> str:
    return NONE if ratio is None else f"{ratio[1]:.2f}x"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _memory(measure: Measure | None) -> str:
    if measure is None or measure.peak_mb is None:
        return NONE
    largest = "" if measure.largest_mb is None else f" ({measure.largest_mb:.1f})"
    return f"{measure.peak_mb:.1f}{largest}"
