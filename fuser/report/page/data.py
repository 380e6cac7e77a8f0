"""The report as the data of the page: what `model.js` reads.

    title, summary: str
    places: list of [file, line, code]           modules: list of [path, layer]
    layers: list of [stack, [layer, ...]]        details: list of DETAIL
    kernels: list of {name, text}                breaks: list of str
    verdicts: list of {outcome, reason, script, compared}, the last as in `Report.to_json`
    graphs: list of {name, before, after, rows}
        before: list of [fx, place, module], numbers into the tables
        after: the same, or the position before of a node that is the same
        rows: list of [before, after] or [before, after, event]: positions, -1 where there is none
    events: list of {status, module, place, node, graph, at, detail, reason, inputs, verdict}
        graph: number into graphs, -1 where it was not recorded
        at: the row of the node that failed, or of the anchor; -1 where it is in no row
        verdict: number into verdicts, where the region was to be verified
    groups: list of {pattern, family, status, module, events}: equal events of several layers

A DETAIL is {lowering, why, hint, facts, candidates, kernels}; facts are [name, text, maths], where
maths is HTML or null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...events import Failure, Listing, NearMiss, Rewritten, Row, Verdict, Where
from ...printed import first_line
from ..fold import NAMES_NODES, Folded, fold
from ..text import short, summary
from ..verdicts import by_region, compared_data, region_of
from .align import aligned
from .maths import maths
from .table import Table

if TYPE_CHECKING:
    from ..report import Report

Event = Rewritten | NearMiss | Failure | Verdict
_LAYER = re.compile(r"(?:^|\.)\d+(?=\.|$)")


def page_data(report: Report) -> dict[str, Any]:
    """The report as data that `json.dumps` takes."""
    return _Page(report).data()


def layer_of(module: str) -> str:
    """The layer that a module path is in, up to its first number: `model.layers.17` of
    `model.layers.17.mlp.experts.3`; "" where there is none."""
    found = _LAYER.search(module)
    return module[: found.end()] if found else ""


def named(fx: str) -> str:
    """The name of the node that a line of FX describes."""
    return re.split(r"[:\s]", fx, maxsplit=1)[0]


class _Page:
    """Data in the making."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.places, self.modules, self.details = Table(), Table(), Table()
        self.verdicts = Table()
        self.by_region = by_region(report.verdicts)
        self.taken_back = [v for v in report.verdicts if v.outcome == "wrong"]
        self.listings = list(_listings(report))
        self.events: list[Event] = [
            *report.rewritten, *report.near_misses, *report.failures, *self.taken_back
        ]  # fmt: skip
        self.numbers = {id(event): i for i, event in enumerate(self.events)}
        self.rows: list[dict[str, int]] = []
        """Of each graph, the rows of its nodes by name; those before win."""

    def data(self) -> dict[str, Any]:
        graphs = [self._graph(i, listing) for i, listing in enumerate(self.listings)]
        events = [self._event(event) for event in self.events]
        groups = [
            *map(self._group, fold(self.report.rewritten)),
            *map(self._group, fold(self.report.left)),
            *map(self._group, fold(self.report.declined)),
            *map(self._group, fold(self.report.failures)),
            *map(self._group, fold(self.taken_back)),
        ]
        return {
            "title": "fuser: graph diff",
            "summary": summary(self.report),
            "graphs": graphs,
            "events": events,
            "groups": groups,
            "details": self.details.values,
            "verdicts": self.verdicts.values,
            "kernels": [asdict(kernel) for kernel in self.report.kernels],
            "breaks": [short(line) for line in self.report.breaks],
            "places": self.places.values,
            "modules": self.modules.values,
            "layers": _layers([layer for _, layer in self.modules.values]),
        }

    # -- graphs

    def _graph(self, index: int, listing: Listing) -> dict[str, Any]:
        before = [named(row.fx) for row in listing.before]
        after = [named(row.fx) for row in listing.after]
        owners = self._owners(listing)
        rows: list[list[int]] = []
        where: dict[str, int] = {}
        for number, (b, a) in enumerate(aligned(before, after)):
            names = [before[b]] * (b >= 0) + [after[a]] * (a >= 0)
            owner = next((owners[n] for n in names if n in owners), None)
            rows.append([b, a] if owner is None else [b, a, owner])
            for name in names:
                where.setdefault(name, number)
        self.rows.append(where)
        same = {(row.fx, row.where): i for i, row in enumerate(listing.before)}
        return {
            "name": f"graph {listing.graph}" + (f", {listing.body}" if listing.body else ""),
            "before": [self._row(row) for row in listing.before],
            "after": [same.get((row.fx, row.where), self._row(row)) for row in listing.after],
            "rows": rows,
        }

    def _owners(self, listing: Listing) -> dict[str, int]:
        """The rewrite behind each node that went or came; of one that came and went, the last."""
        owners: dict[str, int] = {}
        for rewrite in self.report.rewritten:
            if (rewrite.graph, rewrite.body) == (listing.graph, listing.body):
                names = [*map(named, (*rewrite.removed, *rewrite.added)), *rewrite.dropped]
                owners.update(dict.fromkeys(names, self.numbers[id(rewrite)]))
        return owners

    def _row(self, row: Row) -> list[Any]:
        return [row.fx, self._place(row.where), self._module(row.where)]

    # -- events

    def _event(self, event: Event) -> dict[str, Any]:
        graph = self._graph_of(event)
        at = self.rows[graph].get(event.where.node, -1) if graph >= 0 else -1
        common = {
            "status": _status(event),
            "module": self._module(event.where),
            "place": self._place(event.where),
            "node": event.where.node,
            "graph": graph,
            "at": at,
            **self._verdict(event),
        }
        if isinstance(event, Failure):
            return {**common, "reason": event.error, "detail": self._detail()}
        if isinstance(event, Verdict):
            detail = self._detail(lowering=event.lowering)
            return {**common, "reason": event.reason, "detail": detail}
        if isinstance(event, NearMiss):
            detail = self._detail(hint=event.hint, candidates=event.candidates)
            return {**common, "reason": event.reason, "detail": detail}
        detail = self._detail(
            lowering=event.lowering,
            why=event.why,
            facts=[[k, v, maths(v)] for k, v in event.facts.items() if k not in NAMES_NODES],
            candidates=event.candidates,
            kernels=self._kernels(event),
        )
        inputs = [[k, v, None] for k, v in event.facts.items() if k in NAMES_NODES]
        return {**common, "detail": detail, "inputs": inputs}

    def _verdict(self, event: Event) -> dict[str, int]:
        """What verification said of a rewrite, or of a region that it took back."""
        verdict = None if isinstance(event, NearMiss) else self.by_region.get(region_of(event))
        if verdict is None:
            return {}
        told = {
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "script": verdict.script,
            "compared": compared_data(verdict.compared),
        }
        return {"verdict": self.verdicts.number(told)}

    def _detail(self, **parts: Any) -> int:
        candidates = [asdict(candidate) for candidate in parts.pop("candidates", ())]
        empty = {"lowering": "", "why": "", "hint": "", "facts": [], "kernels": []}
        return self.details.number({**empty, **parts, "candidates": candidates})

    def _kernels(self, rewrite: Rewritten) -> list[int]:
        """Kernels that were launched for a region; library kernels have no text."""
        if not rewrite.origin or not rewrite.lowering.startswith("triton"):
            return []
        head = first_line(rewrite.origin)
        kernels = enumerate(self.report.kernels)
        return [i for i, kernel in kernels if kernel.text.partition("\n")[0] == head]

    def _graph_of(self, event: Event) -> int:
        places = [(listing.graph, listing.body) for listing in self.listings]
        own = (event.graph, event.body)
        return places.index(own) if own in places else -1

    def _group(self, folded: Folded[Any]) -> dict[str, Any]:
        first: Event = folded.first
        return {
            "pattern": first.pattern,
            "family": first.pattern.partition(".")[0],
            "status": _status(first),
            "module": folded.module,
            "events": [self.numbers[id(event)] for event in folded.events],
        }

    # -- tables

    def _place(self, where: Where) -> int:
        return self.places.number([short(where.file), where.line, where.code])

    def _module(self, where: Where) -> int:
        return self.modules.number([where.module, layer_of(where.module)])


def _status(event: Event) -> str:
    if isinstance(event, Rewritten):
        return "rewritten" if event.count else "opened"
    if isinstance(event, Verdict):
        return event.outcome
    if isinstance(event, NearMiss):
        return "left" if event.sound else "declined"
    return "failed"


def _listings(report: Report) -> Iterator[Listing]:
    """Graphs as they were recorded; where they were not, what the rewrites tell of them."""
    yield from report.listings
    known = {(listing.graph, listing.body) for listing in report.listings}
    places = dict.fromkeys((r.graph, r.body) for r in report.rewritten)
    for graph, body in places:
        if (graph, body) not in known:
            own = [r for r in report.rewritten if (r.graph, r.body) == (graph, body)]
            before = [row for r in own for row in r.removed_rows()]
            after = [Row(fx, r.where) for r in own for fx in r.added]
            yield Listing(tuple(before), tuple(after), graph, body)


def _layers(layers: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Layers by the stack that they are in, in the order of their numbers."""
    stacks: dict[str, dict[int, str]] = {}
    for layer in layers:
        if layer:
            stack, _, number = layer.rpartition(".")
            stacks.setdefault(stack, {})[int(number)] = layer
    return [(stack, [found[n] for n in sorted(found)]) for stack, found in stacks.items()]
