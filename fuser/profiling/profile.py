"""`fuser.profile`: what the regions of a model cost, beside plain Inductor and what could be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule

from ..backend import fuser
from ..errors import first_sentence
from ..graph.view import GraphView
from ..measure import Run
from ..onlookers import looking
from ..options import LoweringChoice, Options
from ..plan import Planned
from ..report.explain import compile_once
from ..report.report import Report
from ..swallowed import swallow
from . import machine as machines
from .checkpoints import Body, bodies_of, cuts_of
from .cutting import duplicate
from .machine import Machine
from .parts import Parts, Piece, Region, take_apart
from .result import KEPT, Cost, Profile, Row, Step
from .timing import compiled, medians
from .work import Work


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

    The limits of that: by itself a part finds its operands in caches where they fit; it has the
    cost of a call of compiled code, some 20 µs on a CPU and 100 in training, which small parts
    consist of; and what Inductor fuses over the edge of a region is done in both parts. All of it
    is in the difference between the step and the sum of its parts, which is shown. Bodies of
    activation checkpoints are taken apart as graphs are; what they compute again is in the time of
    each part, and not in its work. Those of other higher-order operators belong to what is left,
    with all of their regions. Dropout draws other numbers.

    On a GPU the time of a part is the device's own, and that of a step has what the device waits
    for the host in it: that too is in the difference.

    Peaks are those of a copy and of matrix products, measured once on this machine, or those that
    makers give for a target.

    Args:
        fn: a module, a function, a bound method, or one of these compiled already.
        args: its arguments; it is called with them once.
        options: `fuser.*` options of this compile; keys of other backends are ignored.
        target: a device (a100, h100, h200, b200, mi300x) or an architecture (sm_80, sm_90, sm_100,
            gfx942) that need not be there. Nothing is measured: work is counted, the least time
            follows from it, and kernels are generated and compiled ahead of time, unless
            `fuser.lowering` allows none. Whether a region would pay there is not asked: the policy
            is `always` unless `options` say otherwise.
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
        graph = _Graph(gm, duplicate(gm), list(inputs))
        graphs.append(graph)
        with looking(graph.look):
            graph.ours = fuser(gm, inputs, **keywords)
        return graph.ours

    record = compile_once(
        "profile", fn, args, kwargs, {**policy, **(options or {})}, fixed, backend
    )
    kinds = (LoweringChoice.AUTO, LoweringChoice.TRITON)
    generates = Options.parse(options)[0].lowering in kinds
    return _profiled(graphs, Report.of(record), machine, generates=generates)


@dataclass
class _Graph:
    """A graph, as captured, and what was seen of it.

    Attributes:
        module: it is rewritten.
        captured: nobody rewrites it.
        inputs: of this call.
        ours: compiled as rewritten.
        parts: what it was taken apart to.
        problem: why it was not, or a body of it.
        bodies: of its checkpoints, when the first of them is looked at; taken apart since, if
            anything is rewritten there.
    """

    module: GraphModule
    captured: GraphModule
    inputs: list[Any]
    ours: Callable[..., Any] | None = None
    parts: Parts | None = None
    problem: str = ""
    bodies: dict[GraphModule, Body] | None = None
    taken: dict[GraphModule, Parts] = field(default_factory=dict)

    def look(self, view: GraphView, planned: Sequence[Planned]) -> None:
        """Takes a graph, or a body that has rewrites, apart just before it is rewritten."""
        try:
            if view.module is self.module:
                self.parts = take_apart(
                    view, planned, self.inputs, self.captured, bodies=self.taken
                )
                return
            if self.bodies is None:
                self.bodies = {}
                self.bodies = bodies_of(self.module, self.captured, self.inputs)
            body = self.bodies.get(view.module)
            if body is not None and (planned or cuts_of(view, self.taken)):
                self.taken[view.module] = take_apart(
                    view, planned, body.inputs, body.captured, body.call, self.taken
                )
        except Exception as error:
            swallow(error)
            self.problem = first_sentence(error)


def _profiled(
    graphs: Sequence[_Graph], report: Report, machine: Machine | None, *, generates: bool
) -> Profile:
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
        for part in parts.all():
            rows += _rows(i, part, peaks, times)
    known = not peaks.predicted and bool(whole)
    ours, inductor = (
        Step(
            total if known else None,
            sum(getattr(row, name).ms or 0.0 for row in rows) if known else None,
            sum(getattr(row, name).limit_ms or 0.0 for row in rows),
        )
        for total, name in zip(totals.values(), ("ours", "inductor"), strict=True)
    )
    kernels = None
    if machine is not None and generates:
        from .predict import compiled_ahead

        regions = [(r, part) for _, _, parts in whole for part in parts.all() for r in part.regions]
        kernels, why = compiled_ahead(regions, machine.arch)
        problems = (*problems, *why)
    training = any(parts.training for _, _, parts in whole)
    return Profile(tuple(rows), ours, inductor, peaks, training, report, problems, kernels)


def _measured(graph: _Graph, parts: Parts) -> dict[str, float]:
    """Milliseconds of the two whole graphs, what is left of them, and of pieces by their keys."""
    operands = parts.start
    assert graph.ours is not None
    whole = Piece(graph.captured, operands)
    steps = {
        "whole ours": compiled(parts, whole, ours=True, made=graph.ours),
        "whole theirs": compiled(parts, whole, ours=False),
    }
    pieces: dict[str, Run] = {}
    for part in parts.all():
        for holder in (*part.regions, *([] if part.nothing else [part])):
            for piece, ours in ((holder.ours, True), (holder.theirs, False)):
                if piece is not None and (key := _key(piece, ours=ours)) not in pieces:
                    pieces[key] = compiled(part, piece, ours=ours)
    return medians(steps, pieces, parts.device)


def _key(piece: Piece, *, ours: bool) -> str:
    return f"{'ours' if ours else 'theirs'} {piece.key()}"


def _rows(index: int, parts: Parts, machine: Machine, times: Mapping[str, float]) -> list[Row]:
    def cost(work: Work | None, key: str) -> Cost:
        return _cost(work, parts, machine, times.get(key))

    rows = []
    for region in parts.regions:
        ours, theirs = (
            cost(_work(region), "" if piece is None else _key(piece, ours=own))
            for piece, own in ((region.ours, True), (region.theirs, False))
        )
        place, why = region.where, region.problem
        rows.append(Row(region.pattern, place, region.lowering, ours, theirs, index, why))
    if parts.nothing:
        return rows
    ours = cost(parts.ours_work, _key(parts.ours, ours=True))
    theirs = cost(parts.theirs_work, _key(parts.theirs, ours=False))
    return [*rows, Row(KEPT, parts.where, "", ours, theirs, index)]


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
    return Cost(flops, moved, limit * 1e3, ms, bound, numbers.kernels)
