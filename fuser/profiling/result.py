"""What a profile says: a row for each region, and the step; as text, JSON and a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ..events import Where
from ..report.report import Report
from .machine import Machine

if TYPE_CHECKING:
    from ..kernels import Survey

KEPT = "kept by Inductor"
SCHEMA = 1


@dataclass(frozen=True)
class Cost:
    """What a part costs, once.

    Attributes:
        flops, bytes: at the least (see `fuser.profiling.work`); None where they are not known.
        limit_ms: the least time of those, at the machine's peak.
        ms: as measured; None where nothing was.
        launches: of kernels, at the least.
        bound: "compute" or "memory", whichever takes longer at the peak, or "launch" where asking
            for the kernels takes longer than both.
    """

    flops: float | None = None
    bytes: float | None = None
    limit_ms: float | None = None
    ms: float | None = None
    bound: str = ""
    launches: int = 0

    @property
    def intensity(self) -> float | None:
        """Operations for each byte."""
        if self.flops is None or not self.bytes:
            return None
        return self.flops / self.bytes

    @property
    def share(self) -> float | None:
        """Of the machine's peak: the least time over that which was measured."""
        return None if self.limit_ms is None or not self.ms else self.limit_ms / self.ms

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "intensity": self.intensity, "share_of_peak": self.share}


@dataclass(frozen=True)
class Row:
    """A region, or what is left to Inductor of a graph.

    Attributes:
        name: the pattern's id, or "kept by Inductor".
        where: in the user's program; of no use for what is left.
        lowering: what was put there.
        ours, inductor: as rewritten, and as plain Inductor has it.
        problem: why it was not measured by itself; then it is in what is left.
    """

    name: str
    where: Where
    lowering: str
    ours: Cost
    inductor: Cost
    graph: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "where": asdict(self.where),
            "lowering": self.lowering,
            "graph": self.graph,
            "problem": self.problem or None,
            "ours": self.ours.to_json(),
            "inductor": self.inductor.to_json(),
        }


@dataclass(frozen=True)
class Step:
    """All graphs of one call, each by itself, and in training their backwards.

    Attributes:
        ms: of whole graphs, as measured; None where nothing was.
        parts_ms: the sum of all rows.
        limit_ms: the sum of their limits.
    """

    ms: float | None
    parts_ms: float | None
    limit_ms: float = 0.0

    @property
    def between_ms(self) -> float | None:
        """What the step takes beyond its parts: time between kernels. Below zero where the inner
        backend fuses parts that are measured apart."""
        return None if self.ms is None or self.parts_ms is None else self.ms - self.parts_ms

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "between_ms": self.between_ms}


@dataclass(frozen=True, eq=False)
class Profile:
    """What `fuser.profile` found.

    Attributes:
        rows: regions in the order of the program, then what is left, graph by graph.
        ours, inductor: the step, as rewritten and by plain Inductor.
        machine: its peaks.
        training: a step has a backward.
        report: of the compile.
        problems: graphs that could not be taken apart, kernels that could not be compiled, and why.
        kernels: what kernels generated for the regions take of a target; None where none was asked
            for.
    """

    rows: tuple[Row, ...]
    ours: Step
    inductor: Step
    machine: Machine
    training: bool
    report: Report
    problems: tuple[str, ...] = ()
    kernels: Survey | None = None

    @property
    def predicted(self) -> bool:
        """Nothing was measured: times are the least that the machine could take."""
        return self.machine.predicted

    @property
    def regions(self) -> tuple[Row, ...]:
        """Rows of regions."""
        return tuple(row for row in self.rows if row.name != KEPT)

    def folded(self) -> list[tuple[Row, int]]:
        """Rows that differ by their place alone, the first of them, and how many there are."""
        counts: dict[object, int] = {}
        first: dict[object, Row] = {}
        for row in self.rows:
            key = (row.name, row.lowering, row.ours, row.inductor, row.problem)
            counts[key] = counts.get(key, 0) + 1
            first.setdefault(key, row)
        return [(row, counts[key]) for key, row in first.items()]

    def __str__(self) -> str:
        from .table import render

        return render(self)

    def __rich__(self) -> Text:
        return Text(str(self))

    def to_json(self) -> dict[str, Any]:
        """Numbers are in operations, bytes and milliseconds; None where there is none.

        {schema: 1, predicted: bool, training: bool, machine: {...}, problems: [str],
         step: {ours: {ms, parts_ms, limit_ms, between_ms}, inductor: {...}},
         rows: [{name, where, lowering, graph, problem,
                 ours: {flops, bytes, intensity, limit_ms, ms, share_of_peak, bound, launches},
                 inductor: {...}}],
         kernels: as `python -m fuser kernels --json`, or None}
        """
        return {
            "schema": SCHEMA,
            "predicted": self.predicted,
            "training": self.training,
            "machine": self.machine.to_json(),
            "problems": list(self.problems),
            "step": {"ours": self.ours.to_json(), "inductor": self.inductor.to_json()},
            "rows": [row.to_json() for row in self.rows],
            "kernels": self.kernels and self.kernels.to_json(),
        }

    def to_picture(self, path: str | Path) -> None:
        """Write a roofline: operations a second over operations for each byte, a mark a row.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OSError: the file cannot be written.
        """
        from .picture import draw

        draw(self, path)
