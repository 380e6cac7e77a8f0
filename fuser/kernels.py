"""`python -m fuser kernels`: what generated kernels take of a GPU, with none present.

Every kernel of a catalogue is compiled ahead of time for every architecture. A kernel that several
entries lead to is compiled, and listed, once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from .errors import CatalogueError, first_sentence
from .lowering.triton.aot import Failure, Resources
from .lowering.triton.devices import DEVICES, device
from .lowering.triton.kernel import Kernel
from .lowering.triton.pool import compile_all


class Entry(Protocol):
    """What a catalogue says of a kernel. One with a true `may_spill` does so knowingly."""

    @property
    def label(self) -> str: ...

    def kernels(self, arch: str) -> Sequence[Kernel]: ...


@dataclass(frozen=True)
class Row:
    """One kernel on one architecture.

    Attributes:
        kernel: name of the function.
        labels: of the entries that lead to it.
        arch: one of `devices.DEVICES`.
        found: what it takes, or why it does not compile.
        source: file with its text, if that was asked for.
        may_spill: whether an entry says that its spills are known.
    """

    kernel: str
    labels: tuple[str, ...]
    arch: str
    found: Resources | Failure
    source: str | None = None
    may_spill: bool = False

    @property
    def label(self) -> str:
        """The first of the labels, and how many more there are."""
        first, *more = self.labels
        return f"{first} (and {len(more)} more)" if more else first

    @property
    def failed(self) -> bool:
        return isinstance(self.found, Failure)

    @property
    def spills(self) -> bool:
        return isinstance(self.found, Resources) and self.found.spills > 0

    @property
    def too_large(self) -> bool:
        return isinstance(self.found, Resources) and not self.found.launchable

    def to_json(self) -> dict[str, Any]:
        """The row's names, what the kernel takes, and `error`, None if it compiles."""
        names = {"kernel": self.kernel, "labels": list(self.labels), "arch": self.arch}
        if isinstance(self.found, Failure):
            return {**names, "source": self.source, "error": self.found.message}
        taken = {**asdict(self.found), "launchable": self.found.launchable}
        return {**names, "source": self.source, **taken, "error": None}


@dataclass(frozen=True)
class Survey:
    """Kernels and what became of them."""

    rows: tuple[Row, ...]

    def passes(self, *, strict: bool = False) -> bool:
        """Whether every kernel compiles and fits; `strict`: and none spills unknowingly."""
        return not any(
            row.failed or row.too_large or (strict and row.spills and not row.may_spill)
            for row in self.rows
        )

    def counts(self) -> dict[str, int]:
        return {
            "kernels": len(self.rows),
            "spills": sum(row.spills for row in self.rows),
            "too_large": sum(row.too_large for row in self.rows),
            "failures": sum(row.failed for row in self.rows),
        }

    def to_json(self) -> dict[str, Any]:
        """`{schema: 1, summary: {kernels, spills, too_large, failures}, kernels: [...]}`."""
        rows = [row.to_json() for row in self.rows]
        return {"schema": 1, "summary": self.counts(), "kernels": rows}

    def __str__(self) -> str:
        table = [_HEAD, *(_cells(row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [_line(cells, widths) for cells in table]
        for row in self.rows:
            if isinstance(row.found, Failure):
                lines.append(f"\n{row.kernel} for {row.arch} ({row.label}) does not compile:")
                lines.append("    " + row.found.message.replace("\n", "\n    "))
        count = self.counts()
        lines.append(
            f"\n{_many(count['kernels'], 'kernel')}: {count['spills']} with spills, "
            f"{count['too_large']} too large for the device, {_many(count['failures'], 'failure')}"
        )
        return "\n".join(lines)


_HEAD = (
    "kernel", "for", "arch", "registers", "spills B", "shared KiB", "CTAs/SM", "occupancy",
    "limited by",
)  # fmt: skip
_TEXT = {0, 1, 2, 8}
"""Columns that are not numbers."""


def _many(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _cells(row: Row) -> tuple[str, ...]:
    names = (row.kernel, row.label, row.arch)
    if isinstance(row.found, Failure):
        return (*names, "", "", "", "", "", "does not compile")
    held = row.found.occupancy
    return (
        *names,
        str(row.found.registers),
        str(row.found.spills or ""),
        f"{row.found.shared / 1024:.1f}",
        str(held.blocks),
        f"{held.share:.0%}",
        held.limit if held.blocks else f"{held.limit}: too large",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column in _TEXT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def catalogue(paths: Sequence[str]) -> Iterator[Entry]:
    """The entries of files of JSON lines; without any, of the workloads that are benchmarked.

    Raises:
        CatalogueError: a line that describes no kernel.
        OSError: a file that cannot be read.
    """
    from .lowering.activation.generated import catalogue as activation
    from .lowering.activation.generated import workloads as activations
    from .lowering.attention.generated import catalogue as attention
    from .lowering.moe.generated import catalogue as moe
    from .lowering.moe.router import catalogue as router
    from .lowering.norm.generated import catalogue as norm
    from .lowering.norm.generated import workloads as norms

    if not paths:
        yield from attention.builtin()
        yield from moe.builtin()
        yield from router.builtin()
        yield from norms.builtin()
        yield from activations.builtin()
    kinds = {kind.KIND: kind.Entry for kind in (moe, router, norm, activation)}
    for path in paths:
        for number, line in enumerate(Path(path).read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                kind = kinds.get(json.loads(line).get("kind"), attention.Entry)
                yield kind.from_json(line)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CatalogueError(path, number, error) from error


def survey(
    entries: Iterable[Entry],
    archs: Sequence[str] = (),
    *,
    pattern: str = "*",
    jobs: int | None = None,
    sources: str | None = None,
) -> Survey:
    """Compiles the kernels of entries; progress goes to standard error.

    Args:
        entries: of a catalogue.
        archs: names out of `devices.DEVICES`; all of them if there are none.
        pattern: glob of the labels, or of the kernels' names, that are wanted.
        jobs: compilers at a time; as many as there are cores if None.
        sources: folder for the kernels' text.

    Raises:
        UnknownArchitectureError: an architecture that is none.
        TritonMissingError: triton is not installed.
        OSError: `sources` cannot be written to.
    """
    names = [device(arch).name for arch in dict.fromkeys(archs)] or list(DEVICES)
    wanted, rows = _written(entries, names, pattern)
    outcomes = compile_all(list(wanted), jobs, _progress)
    for ((kernel, arch), of), outcome in zip(wanted.items(), outcomes, strict=True):
        source = _save(sources, kernel) if sources else None
        labels = tuple(dict.fromkeys(entry.label for entry in of))
        known = any(getattr(entry, "may_spill", False) for entry in of)
        rows.append(Row(kernel.name, labels, arch, outcome, source, known))
    return Survey(tuple(rows))


def _written(
    entries: Iterable[Entry], archs: Sequence[str], pattern: str
) -> tuple[dict[tuple[Kernel, str], list[Entry]], list[Row]]:
    """Kernels with the entries that lead to them, and a row for each that has no text."""
    kernels: dict[tuple[Kernel, str], list[Entry]] = {}
    failures: list[Row] = []
    for entry, arch in itertools.product(entries, archs):
        named = fnmatchcase(entry.label, pattern)
        try:
            written = entry.kernels(arch)
        except Exception as error:  # one kernel's: the others are still worth compiling
            failure = Failure("(no text)", arch, first_sentence(error))
            failures += [Row(failure.kernel, (entry.label,), arch, failure)] if named else []
            continue
        for kernel in written:
            if named or fnmatchcase(kernel.name, pattern):
                kernels.setdefault((kernel, arch), []).append(entry)
    return kernels, failures


def _save(folder: str, kernel: Kernel) -> str:
    digest = hashlib.sha256(kernel.source.encode()).hexdigest()[:10]
    path = Path(folder) / f"{kernel.name}_{digest}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(kernel.source)
    return str(path)


def _progress(done: int, total: int) -> None:
    """One line that is rewritten on a terminal, a line for every tenth elsewhere."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} kernels", end=end, file=sys.stderr, flush=True)
    elif done * 10 // total > (done - 1) * 10 // total:
        print(f"{done} of {total} kernels", file=sys.stderr, flush=True)
