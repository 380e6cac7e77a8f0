"""`Report`: a frozen view on the record of a compile, for people, tests and tools."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from ..errors import CoverageError, FuserError
from ..events import Failure, Listing, NearMiss, Printed, Record, Rewritten, Verdict
from ..options import matches
from ..registry import OWN_FAMILIES, is_family
from . import text
from .page.write import frame, page
from .verdicts import verdict_data

SCHEMA = 1
"""Version of `Report.to_json`; grows when a field changes its meaning or goes."""


@dataclass(frozen=True, eq=False)
class Report:
    """What one or several compiles did.

    Attributes:
        rewritten: regions that were replaced, one each (a differential attention of two terms is
            one region), and composites that were only spelled out (`count` 0) to be matched.
        near_misses: regions that were looked at and left alone; see also `left` and `declined`.
        failures: regions left alone because a pattern, ours or a plug-in's, raised.
        verdicts: what verification found about regions, one each, where it is on (`fuser.verify`).
        breaks: graph breaks, one line each: `file:line: code: reason`.
        graphs: number of graphs that reached the backend.
        nodes: FX nodes in them before the rewrite.
        seconds: time that matching and rewriting took, verification included where it is on; the
            inner backend's is not in it.
        listings: the nodes of every graph before and after, where they were recorded: by `explain`
            and for a debug folder.
        kernels: generated kernels that were launched meanwhile.
    """

    rewritten: tuple[Rewritten, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    failures: tuple[Failure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    breaks: tuple[str, ...] = ()
    graphs: int = 0
    nodes: int = 0
    seconds: float = 0.0
    listings: tuple[Listing, ...] = ()
    kernels: tuple[Printed, ...] = ()

    @staticmethod
    def of(record: Record) -> Report:
        """The report on a record as it is now."""
        return Report(
            tuple(record.rewritten),
            tuple(record.near_misses),
            tuple(record.failures),
            tuple(record.verdicts),
            tuple(record.breaks),
            record.graphs,
            record.nodes,
            record.seconds,
            tuple(record.listings),
            tuple(dict.fromkeys(record.kernels)),
        )

    @property
    def left(self) -> tuple[NearMiss, ...]:
        """Near misses that were proved, but are left to the inner backend."""
        return tuple(miss for miss in self.near_misses if miss.sound)

    @property
    def declined(self) -> tuple[NearMiss, ...]:
        """Near misses that could not be proved."""
        return tuple(miss for miss in self.near_misses if not miss.sound)

    def count(self, pattern: str = "*") -> int:
        """How many regions were rewritten; a composite that was only spelled out is none.

        Args:
            pattern: a family (`attention`), an id (`attention.softmax`) or a glob (`mine.*`).
        """
        return sum(matches(rewrite.pattern, pattern) for rewrite in self.rewritten if rewrite.count)

    def expect(self, **families: int) -> Report:
        """Require that exactly so many regions of each family were rewritten.

            fuser.explain(model, ids).expect(attention=32, moe=0)

        Args:
            families: number by family, the part of a pattern's id before the dot; whatever `count`
                takes works too, as in `expect(**{"attention.softmax": 32})`.

        Returns:
            the report itself.

        Raises:
            CoverageError: a number differs; the message holds the whole report.
            FuserError: a family that does not exist, or a number that is none.
        """
        for family, wanted in families.items():
            require_family(family, wanted, self.count(family))
        wrong = [
            f"expected {family}={wanted}, but {found} {'was' if found == 1 else 'were'} rewritten"
            for family, wanted in families.items()
            if (found := self.count(family)) != wanted
        ]
        if wrong:
            raise CoverageError("; ".join(wrong) + f"\n\n{self}")
        return self

    def __str__(self) -> str:
        return self.to_text()

    def __rich__(self) -> Text:
        return text.styled(self)

    def to_text(self, color: bool = False) -> str:
        """The graph diff and everything else as text of 100 columns.

        Args:
            color: with ANSI escape codes.
        """
        return text.render(self, color)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as a page: one file, to be opened in a browser, with no network.

        Graphs before and after stand side by side, with the user's lines and modules; beside them
        what was proved, what was put there and what else was considered, and why the rest was
        left. See `docs/reading-the-diff.md`.

        Args:
            path: of the file, overwritten; folders above it are made.

        Returns:
            the path.

        Raises:
            OSError: it cannot be written.
        """
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(self), encoding="utf-8")
        return file

    def _repr_html_(self) -> str:
        """The page in a frame, for notebooks."""
        return frame(self)

    def to_json(self, *, listings: bool = False) -> dict[str, Any]:
        """The report as data that `json.dumps` takes.

            schema: 1
            graphs, nodes: int
            milliseconds: float, spent in matching and rewriting
            rewritten: list of
                pattern: str, id of the pattern
                where: WHERE of the anchor
                lowering, why: str, what was put there and the rule that chose it
                facts: dict of str, what was proved (heads, program, mask, ...)
                removed: list of {fx: str, where: WHERE}, nodes in the order of the graph
                added: list of str, FX of the replacement
                count: int, how many operators were put there; 0: spelled out to be matched
                graph: int, number of the graph
                body: str, path of the higher-order operator's body in it; "": the graph itself
                candidates: list of CANDIDATE
                dropped: list of str, names of nodes above it that nobody reads any more
                origin: str, what generated kernels call it
            near_misses: list of
                pattern: str
                where: WHERE of the node that failed
                reason, hint: str; no hint is ""
                sound: bool, proved but left to the inner backend
                graph: int
                body: str
                candidates: list of CANDIDATE
            failures: list of {pattern: str, where: WHERE, error: str, graph: int, body: str}
            verdicts: list of
                pattern: str
                where: WHERE of the anchor
                lowering: str
                outcome: "verified", "wrong" (taken back to the inner backend) or "unverified"
                reason: str, why it is wrong or unverified, else ""
                compared: list of {name: str, error, original, allowed: float or null,
                    worst: list of int, problem: str}; null: numbers are finite in other places
                script: str, path of a reproduction, or ""
                graph: int
                body: str
            breaks: list of str, `file:line: code: reason`
            kernels: list of {name: str, text: str}, generated kernels that were launched
            listings: list of {graph: int, body: str, before: ROWS, after: ROWS}; only if asked for

        CANDIDATE is {name: str, verdict: str, chosen: bool, work: float or null, milliseconds:
        float or null}: a lowering that was considered, why it was taken or not, its expected work
        in units of a plain library kernel, and its time where that was measured.
        ROWS is a list of {fx: str, where: WHERE}, all nodes in the order of the graph.
        WHERE is {node: str, file: str, line: int, code: str, module: str}; an unknown file, code or
        module is "", an unknown line 0.
        """
        data = {
            "schema": SCHEMA,
            "graphs": self.graphs,
            "nodes": self.nodes,
            "milliseconds": round(self.seconds * 1e3, 3),
            "rewritten": [_rewritten(rewrite) for rewrite in self.rewritten],
            "near_misses": [asdict(miss) for miss in self.near_misses],
            "failures": [asdict(failure) for failure in self.failures],
            "verdicts": [verdict_data(verdict) for verdict in self.verdicts],
            "breaks": list(self.breaks),
            "kernels": [asdict(kernel) for kernel in self.kernels],
        }
        if listings:
            data["listings"] = [asdict(listing) for listing in self.listings]
        return data


def require_family(family: str, wanted: Any, found: int) -> None:
    """Check what somebody expects of a family.

    Args:
        family: its name, or a pattern's id or glob.
        wanted: how many regions are expected.
        found: how many there are.

    Raises:
        FuserError: there is no such family, or `wanted` is no number.
    """
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0:
        raise FuserError(f"expect({family}={wanted!r}): a number of regions is expected.")
    if not found and not is_family(family):
        known = ", ".join(name.removesuffix(".") for name in OWN_FAMILIES)
        raise FuserError(
            f"expect({family}={wanted}): no pattern or family is called {family!r}; families "
            f"of our own are {known}."
        )


def _rewritten(rewrite: Rewritten) -> dict[str, Any]:
    data = asdict(rewrite)
    del data["sources"]
    data["removed"] = [asdict(row) for row in rewrite.removed_rows()]
    return data
