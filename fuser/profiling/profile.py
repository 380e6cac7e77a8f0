"""`fuser.profile`: what the regions of a model cost, beside plain Inductor and this machine's best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.text import Text
from torch.fx import GraphModule

from ..backend import fuser
from ..errors import first_sentence
from ..events import Where
from ..graph.view import GraphView
from ..onlookers import looking
from ..plan import Planned
from ..report.explain import compile_once
from ..report.report import Report
from ..swallowed import swallow
from . import machine as machines
from .machine import Machine
from .parts import Parts, Piece, Region, duplicate, take_apart
from .timing import compiled, medians
from .work import Work

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
        bound: "compute" or "memory", whichever takes longer at the peak, or "launch" where asking
            for the kernels takes longer than both.
    """

    flops: float | None = None
    bytes: float | None = None
    limit_ms: float | None = None
    ms: float | None = None
    bound: str = ""

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
    """

    ms: float | None
    parts_ms: float | None

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

    def __str__(self) -> str:
        from .table import render

        return render(self)

    def __rich__(self) -> Text:
        return Text(str(self))

    def to_json(self) -> dict[str, Any]:
        """Numbers are in operations, bytes and milliseconds; None where there is none.

            {schema: 1, predicted: bool, training: bool, machine: {...}, problems: [str],
             step: {ours: {ms, parts_ms, between_ms}, inductor: {...}},
             rows: [{name, where, lowering, graph, problem,
                     ours: {flops, bytes, intensity, limit_ms, ms, share_of_peak, bound},
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


def profile(
    fn: Callable[..., Any],
    /,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    target: str | None = None,
    **kwargs: Any,
) -> Profile:
    """Compile a module or function once, and say what each rewritten region of it costs.

        print(fuser.profile(model, ids))
        print(fuser.profile(model, ids, target="h200"))  # predicted, with no GPU present

    Every graph is taken apart: each region by itself, at what it reads in this very call, and what
    is left where all regions are cut out. These parts and the whole graph are compiled by Inductor,
    as rewritten and as captured, and run in rounds, one after the other; times are medians. Equal
    regions are measured once. With gradients on, a run is a forward and a backward; of functions of
    loss or an optimizer outside of the graphs nothing is seen.

    The limits of that: by itself a part finds its operands in caches where they fit; and what
    Inductor fuses over the edge of a region is done in both parts. Both are in the difference
    between the step and the sum of its parts, which is shown. Bodies of higher-order operators,
    checkpoints say, belong to what is left, with all of their regions. Dropout draws other numbers.

    Peaks are those of a copy and of matrix products, measured once on this machine, or those that
    makers give for a target.

    Args:
        fn: a module, a function, a bound method, or one of these compiled already.
        args: its arguments; it is called with them once.
        options: `fuser.*` options of this compile; keys of other backends are ignored.
        target: a device (a100, h100, h200, b200, mi300x) or an architecture (sm_80, sm_90, sm_100,
            gfx942) that need not be there. Nothing is measured: work is counted, the least time
            follows from it, and kernels are generated and compiled ahead of time. Whether a region
            would pay there is not asked: the policy is `always` unless `options` say otherwise.
        kwargs: its keyword arguments.

    Returns:
        what was found; `str()` of it is a table.

    Raises:
        UnknownArchitectureError: a target that is not known.
        UnknownOptionError, InvalidOptionError: a bad option.
        FuserError: `fn` is a class, or nothing that can be called. What it raises passes through.
    """
    machine = None if target is None else machines.known(target)
    policy = {} if machine is None else {"fuser.policy": "always"}
    fixed = {"fuser.debug": False, "fuser.verify": False}
    fixed |= {"fuser.inner": "inductor" if machine is None else "eager"}
    graphs: list[_Graph] = []

    def backend(gm: GraphModule, inputs: Sequence[Any], **keywords: Any) -> Callable[..., Any]:
        graph = _Graph(duplicate(gm), list(inputs))
        graphs.append(graph)

        def look(view: GraphView, planned: Sequence[Planned]) -> None:
            if view.module is gm:
                graph.look(view, planned)

        with looking(look):
            graph.ours = fuser(gm, inputs, **keywords)
        return graph.ours

    record = compile_once("profile", fn, args, kwargs, {**policy, **(options or {})}, fixed, backend)
    return _profiled(graphs, Report.of(record), machine)


@dataclass
class _Graph:
    """A graph, as captured, and what was seen of it.

    Attributes:
        captured: nobody rewrites it.
        inputs: of this call.
        ours: compiled as rewritten.
    """

    captured: GraphModule
    inputs: list[Any]
    ours: Callable[..., Any] | None = None
    parts: Parts | None = None
    problem: str = ""

    def look(self, view: GraphView, planned: Sequence[Planned]) -> None:
        try:
            self.parts = take_apart(view, planned, self.inputs)
        except Exception as error:
            swallow(error)
            self.problem = first_sentence(error)


def _profiled(graphs: Sequence[_Graph], report: Report, machine: Machine | None) -> Profile:
    whole = [(i, g, g.parts) for i, g in enumerate(graphs) if g.parts is not None]
    problems = tuple(f"graph {i}: {g.problem}" for i, g in enumerate(graphs) if g.problem)
    device = whole[0][2].device if whole else torch.device("cpu")
    peaks = machine or machines.this_machine(device)
    rows: list[Row] = []
    totals = {"ours": 0.0, "theirs": 0.0}
    for i, graph, parts in whole:
        times = {} if peaks.predicted else _measured(graph, parts)
        for side in totals:
            totals[side] += times.get(f"whole {side}", 0.0)
        rows += _rows(i, parts, peaks, times)
    known = not peaks.predicted and bool(whole)
    steps = [
        Step(
            total if known else None,
            sum(getattr(row, name).ms or 0.0 for row in rows) if known else None,
        )
        for total, name in zip(totals.values(), ("ours", "inductor"), strict=True)
    ]
    kernels = None
    if machine is not None:
        from .predict import compiled_ahead

        regions = [(r, parts) for _, _, parts in whole for r in parts.regions]
        kernels, why = compiled_ahead(regions, machine.arch)
        problems = (*problems, *why)
    training = any(parts.training for _, _, parts in whole)
    return Profile(tuple(rows), *steps, peaks, training, report, problems, kernels)


def _measured(graph: _Graph, parts: Parts) -> dict[str, float]:
    """Milliseconds of the two whole graphs, what is left of them, and of pieces by their keys."""
    operands = parts.start
    assert graph.ours is not None
    runs = {
        "whole ours": compiled(parts, Piece(graph.captured, operands), ours=True, made=graph.ours),
        "whole theirs": compiled(parts, Piece(graph.captured, operands), ours=False),
        "left ours": compiled(parts, parts.ours, ours=True),
        "left theirs": compiled(parts, parts.theirs, ours=False),
    }
    for region in parts.regions:
        for piece, ours in ((region.ours, True), (region.theirs, False)):
            if piece is not None and not region.problem:
                key = _key(piece, ours)
                if key not in runs:
                    runs[key] = compiled(parts, piece, ours=ours)
    return medians(runs, parts.device)


def _key(piece: Piece, ours: bool) -> str:
    return f"{'ours' if ours else 'theirs'} {piece.key()}"


def _rows(index: int, parts: Parts, machine: Machine, times: Mapping[str, float]) -> list[Row]:
    rows = []
    for region in parts.regions:
        costs = [
            _cost(_work(region), parts, machine, None if piece is None else times.get(_key(piece, o)))
            for piece, o in ((region.ours, True), (region.theirs, False))
        ]
        rows.append(
            Row(region.pattern, region.where, region.lowering, *costs, index, region.problem)
        )
    costs = [
        _cost(work, parts, machine, times.get(f"left {side}"))
        for work, side in ((parts.ours_work, "ours"), (parts.theirs_work, "theirs"))
    ]
    return [*rows, Row(KEPT, Where(""), "", *costs, index)]


def _work(region: Region) -> Work | None:
    return None if region.problem else region.work


def _cost(work: Work | None, parts: Parts, machine: Machine, ms: float | None) -> Cost:
    if work is None:
        return Cost(ms=ms)
    numbers, rates = work.at(parts.sizes), machine.rates(parts.dtype)
    flops, moved = float(numbers.flops), float(numbers.bytes)
    arithmetic, traffic = flops / rates.flops, moved / rates.bytes
    limit = max(arithmetic, traffic)
    launched = numbers.kernels * machine.launch
    bound = "launch" if launched > limit else "compute" if arithmetic > traffic else "memory"
    return Cost(flops, moved, limit * 1e3, ms, bound)


