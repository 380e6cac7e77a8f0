"""One process a workload: they compile side by side, and time one after the other.

A GPU that is lent for minutes is worth that. Nobody times before all have compiled, since whoever
compiles holds the lock that timing asks for; how long compiling takes is not recorded.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.records import COLUMNS


def run(
    names: Sequence[str], arguments: Sequence[str], out: Path | None, say: Callable[[str], None]
) -> None:
    """Measures workloads, each by a command of its own.

    Args:
        names: of the workloads.
        arguments: of the command, without `--only`, `--csv` and `--lock`.
        out: where everybody's figures go, in the order of the names; what is there already as soon
            as one of them ends.
        say: prints what a command has printed.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(names)) as threads:
        parts = {name: Path(folder) / f"{name}.csv" for name in names}
        lock = Path(folder) / "lock"
        common = [sys.executable, "-m", "benchmarks", *arguments, "--lock", str(lock)]
        commands = [[*common, "--only", name, "--csv", str(part)] for name, part in parts.items()]
        for done in as_completed([threads.submit(_output, command) for command in commands]):
            say(done.result())
            if out is not None:
                _join([part for part in parts.values() if part.exists()], out)


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def _join(parts: Sequence[Path], out: Path) -> None:
    """All rows of some files in one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for part in parts:
            with part.open(newline="") as lines:
                writer.writerows(csv.DictReader(lines))
