"""Where torch's users look for what a compile did: counters, `TORCH_LOGS`, and tlparse.

    counters["fuser"]    of `torch._dynamo.utils`: regions by pattern; `left: `, `declined: `,
                         `failed: ` and `taken back: ` stand before those that are not rewritten
    TORCH_LOGS=fuser     one line for each graph; with `+fuser` the whole report
    TORCH_TRACE=folder   the report as artifacts: `fuser_report` (JSON) and `fuser_report_text`

Reports are made only where somebody looks.
"""

from __future__ import annotations

import json
import logging

from .events import Record
from .swallowed import swallow
from .tools_private import is_traced, trace_artifact
from .torch_private import counters

_LOGGER = logging.getLogger("fuser")


def publish(record: Record, *, told: bool) -> None:
    """Tell of one graph.

    Args:
        record: of its compile.
        told: somebody is told of the whole report anyway, so that the log needs none.
    """
    _count(record)
    logged = _LOGGER.isEnabledFor(logging.INFO) and not told
    try:
        if logged:
            _log(record)
        if is_traced():
            _trace(record)
    except Exception as error:  # what cannot be written or told of stops no program
        swallow(error)


def rewrites() -> dict[str, int]:
    """Regions rewritten since the counters were cleared, by pattern."""
    return {k: int(n) for k, n in counters["fuser"].items() if n and ":" not in k}


def _count(record: Record) -> None:
    counted = counters["fuser"]
    for rewrite in record.rewritten:
        if rewrite.count:
            counted[rewrite.pattern] += rewrite.count
    for miss in record.near_misses:
        counted[f"{'left' if miss.sound else 'declined'}: {miss.pattern}"] += 1
    for failure in record.failures:
        counted[f"failed: {failure.pattern}"] += 1
    for verdict in record.verdicts:
        if verdict.outcome == "wrong":
            counted[f"taken back: {verdict.pattern}"] += 1


def _log(record: Record) -> None:
    from .report.report import Report
    from .report.text import summary

    report = Report.of(record)
    if _LOGGER.isEnabledFor(logging.DEBUG):
        _LOGGER.debug("%s", report.to_text().rstrip())
    else:
        _LOGGER.info("%s", summary(report))


def _trace(record: Record) -> None:
    from .report.report import Report

    report = Report.of(record)
    trace_artifact("fuser_report", "json", json.dumps(report.to_json(), indent=1))
    trace_artifact("fuser_report_text", "string", report.to_text())
