"""Reports while compiling: `fuser.debug(...)`, the option `fuser.debug`, `FUSER_DEBUG`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Generator
from pathlib import Path

from ..backend import listening
from ..disk import free
from ..errors import FuserWarning
from ..events import Record
from ..options import LOG, debug_target
from .report import Report


@contextlib.contextmanager
def debug(target: str | os.PathLike[str] | bool = LOG) -> Generator[None]:
    """Report on every graph that the fuser backend compiles within the block.

        with fuser.debug("reports"):
            model(ids)

    Dynamo compiles when a compiled function is called, so it is the call that has to be in the
    block; what is compiled already is not compiled again. Without code: `FUSER_DEBUG=reports`.

    Args:
        target: a directory for `graph_<n>.txt`, `.json` and `.html`, made where it is missing; "1"
            or True, the default, prints the text; "0" or False does nothing.

    Raises:
        InvalidOptionError: the target is something else.
    """
    where = debug_target(target, "the target of fuser.debug")
    with _listening(where) if where else contextlib.nullcontext():
        yield


def _listening(where: str) -> contextlib.AbstractContextManager[None]:
    return listening(lambda record: write(record, where), listings=where != LOG)


def write(record: Record, target: str) -> None:
    """Report on one graph; a report that cannot be written costs a warning, not the compile.

    Args:
        record: of the graph.
        target: "1" for the logger `fuser` (level INFO; standard error where that is not listened
            to), anything else a directory.
    """
    report = Report.of(record)
    if target == LOG:
        _log(report)
        return
    try:
        _save(report, Path(target))
    except OSError as error:
        warnings.warn(
            f"fuser could not write its report to {target!r}: {error}", FuserWarning, stacklevel=3
        )


def _log(report: Report) -> None:
    logger = logging.getLogger("fuser")
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info("%s", report.to_text())
        return
    handler = logging.StreamHandler(sys.stderr)
    text = report.to_text(color=sys.stderr.isatty())
    handler.handle(logger.makeRecord("fuser", logging.INFO, __file__, 0, "%s", (text,), None))


def _save(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = free(folder, "graph", ".txt")
    # a file's name, which Python has escaped, need be no text
    path.write_text(report.to_text(), encoding="utf-8", errors="backslashreplace")
    data = json.dumps(report.to_json(), indent=1)
    path.with_suffix(".json").write_text(data, encoding="utf-8")
    report.to_html(path.with_suffix(".html"))
