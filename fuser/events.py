"""What happened during a compile, as plain data. Every report is a rendering of this record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Where:
    """A place in the user's program."""

    node: str
    file: str = ""
    line: int = 0
    code: str = ""
    module: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file else self.node
        return f"{place} in {self.module}" if self.module else place


@dataclass(frozen=True)
class Row:
    """One node of a graph."""

    fx: str
    where: Where


@dataclass(frozen=True)
class Candidate:
    """A way to compute a region that was considered.

    Attributes:
        name: of the lowering, or "the inner backend".
        verdict: why it was taken, or why it was not.
        chosen: whether it was.
        work: expected time in units of a plain library kernel; None where it cannot do it.
        milliseconds: measured time; None where nothing was measured.
    """

    name: str
    verdict: str
    chosen: bool = False
    work: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Rewritten:
    """A region was replaced."""

    pattern: str
    where: Where
    lowering: str
    why: str
    facts: dict[str, str]
    removed: tuple[str, ...]
    added: tuple[str, ...]
    graph: int = 0
    sources: tuple[Where, ...] = ()
    """The user's line behind each of `removed`."""
    count: int = 1
    """How many operators were put there: two for a difference of two attentions."""
    body: str = ""
    """Of which higher-order operator of the graph it was the body; "" is the graph itself."""
    candidates: tuple[Candidate, ...] = ()
    dropped: tuple[str, ...] = ()
    """Names of nodes above it that went as well: nobody reads them any more."""
    origin: str = ""
    """What texts of its generated kernels call it."""

    def removed_rows(self) -> list[Row]:
        """What was removed, each with the user's line."""
        return [
            Row(fx, self.sources[i] if i < len(self.sources) else self.where)
            for i, fx in enumerate(self.removed)
        ]


@dataclass(frozen=True)
class NearMiss:
    """A region was looked at and left alone."""

    pattern: str
    where: Where
    reason: str
    hint: str = ""
    sound: bool = False
    """True where the rewrite was proved but left to the inner backend because it does not pay."""
    graph: int = 0
    body: str = ""
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Our own code, or a plug-in's, failed; the region was left alone."""

    pattern: str
    where: Where
    error: str
    graph: int = 0
    body: str = ""


@dataclass(frozen=True)
class Listing:
    """All nodes of a graph, or of a body in it, before and after; collected on demand."""

    before: tuple[Row, ...]
    after: tuple[Row, ...]
    graph: int = 0
    body: str = ""


@dataclass(frozen=True)
class Printed:
    """A generated kernel that was launched.

    Attributes:
        name: of the function.
        text: of the module that holds it.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Compared:
    """One value of a region beside its original's, both against fp64.

    Attributes:
        name: `output 0`, or `gradient of linear_1`: of the node that the region reads.
        error, original: largest errors of the replacement and of the original; infinite where
            numbers are finite in other places.
        allowed: the largest error that is allowed.
        worst: indices of the worst element.
        problem: what is wrong; empty where nothing is.
    """

    name: str
    error: float
    original: float
    allowed: float
    worst: tuple[int, ...] = ()
    problem: str = ""

    def __str__(self) -> str:
        """What is wrong, where."""
        place = f" at {list(self.worst)}" if self.worst else ""
        return f"{self.name}{place} {self.problem or 'is right'}"


@dataclass(frozen=True)
class Verdict:
    """What verification found about a region.

    Attributes:
        outcome: `verified`, `wrong` (it was taken back to the inner backend) or `unverified`.
        reason: why it is wrong, or why it could not be compared.
        compared: its outputs, then the gradients of what it reads.
        script: path of a script that shows the mismatch.
    """

    pattern: str
    where: Where
    lowering: str
    outcome: str
    reason: str = ""
    compared: tuple[Compared, ...] = ()
    script: str = ""
    graph: int = 0
    body: str = ""


@dataclass
class Record:
    """Everything that happened in one or several compiles."""

    rewritten: list[Rewritten] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    breaks: list[str] = field(default_factory=list)
    graphs: int = 0
    nodes: int = 0
    seconds: float = 0.0
    listings: list[Listing] = field(default_factory=list)
    """Of every graph, where somebody asked for them."""
    kernels: list[Printed] = field(default_factory=list)
    """Generated kernels, where somebody listened while they were launched."""

    def extend(self, other: Record) -> None:
        self.rewritten += other.rewritten
        self.near_misses += other.near_misses
        self.failures += other.failures
        self.verdicts += other.verdicts
        self.breaks += other.breaks
        self.graphs += other.graphs
        self.nodes += other.nodes
        self.seconds += other.seconds
        self.listings += other.listings
        self.kernels += other.kernels

    def placed(self, place: Callable[[Any], dict[str, Any]]) -> Record:
        """The same with other places: `place` gives what changes (graph, body) in an event or
        listing."""

        def each(events: list[Any]) -> list[Any]:
            return [replace(event, **place(event)) for event in events]

        return replace(
            self,
            rewritten=each(self.rewritten),
            near_misses=each(self.near_misses),
            failures=each(self.failures),
            verdicts=each(self.verdicts),
            listings=each(self.listings),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
