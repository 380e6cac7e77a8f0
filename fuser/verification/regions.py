"""Judge the planned rewrites of a graph, and keep those that may be made.

A region becomes two small graphs, its original and its replacement (see `fuser.rehearsal`). The
captured graph runs once in eager; when it has passed a region, that is compared at what it read.
Nothing that fails here fails the compile: what cannot be compared is made, and told of.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ..errors import FuserWarning, first_sentence
from ..events import Compared, Record, Verdict
from ..graph.fold import Folder
from ..graph.view import GraphView
from ..measure import undisturbed
from ..options import Options
from ..plan import Planned
from ..rehearsal import casting
from ..report.source import where
from ..standing import Unrehearsable
from ..swallowed import swallow
from . import memory
from .compare import NothingFiniteError, ReplacementError, judge
from .minify import minify
from .observe import Reading, Unobservable, inputs_of_bodies, observe, real
from .prepare import Trial, prepare
from .script import write

_LOGGER = logging.getLogger("fuser")
_AGAIN = "an equal region was wrong before in this process"


def acceptable(
    view: GraphView,
    planned: Sequence[Planned],
    inputs: Sequence[Any] | None,
    options: Options,
    record: Record,
    graph: int,
) -> list[Planned]:
    """Those rewrites of a graph, not yet made, that were not found wrong, now or before.

    Args:
        view: the graph.
        planned: its rewrites.
        inputs: of the graph, for this call; None where they are not known.
        options: of this compile; without `verify` nothing is run.
        record: takes a verdict for each that was compared, or left out.
        graph: its number, for reports.
    """
    verdicts = _recalled(planned, {})
    known = set(verdicts)
    if options.verify:
        _Judge(view, planned, options, verdicts).judge(inputs)
    wrong = [v for i, v in verdicts.items() if i not in known and v.outcome == "wrong"]
    verdicts |= _recalled(planned, verdicts)
    found = [replace(verdicts[i], graph=graph) for i in sorted(verdicts)]
    record.verdicts += found
    _tell([v for v in found if v.outcome == "unverified"], len(planned))
    for verdict in wrong:
        _warn(verdict)
    kept = [i for i in range(len(planned)) if i not in verdicts or verdicts[i].outcome != "wrong"]
    return [planned[i] for i in kept]


def _recalled(planned: Sequence[Planned], judged: dict[int, Verdict]) -> dict[int, Verdict]:
    """Verdicts on rewrites that are equal to one that was wrong, by position."""
    found: dict[int, Verdict] = {}
    for i, item in enumerate(planned):
        known = memory.recall(item.match, item.emissions)
        if known is not None and (i not in judged or judged[i].outcome != "wrong"):
            place, reason = where(item.match.anchor), f"{_AGAIN}: {known.reason}"
            found[i] = replace(known, where=place, reason=reason)
    return found


def within_bodies(
    module: GraphModule, inputs: Sequence[Any] | None
) -> dict[GraphModule, list[Any]]:
    """The inputs of the bodies of a graph's higher-order operators, as far as they can be known."""
    device = next((x.device for x in inputs or () if isinstance(x, Tensor)), torch.device("cpu"))
    try:
        with beside(device):
            return inputs_of_bodies(module, real(inputs))
    except Exception as error:
        swallow(error)
        text = "fuser.verify: what checkpoints and the like are called with is not known: %s"
        _LOGGER.warning(text, first_sentence(error))
        return {}


def _warn(verdict: Verdict) -> None:
    script = f"; run {verdict.script} to see it" if verdict.script else ""
    warnings.warn(
        f"fuser took a region at {verdict.where} back to the inner backend, because what "
        f"{verdict.pattern} put there ({verdict.lowering}) is wrong: {verdict.reason}{script}",
        FuserWarning,
        stacklevel=3,
    )


def _tell(unverified: Sequence[Verdict], count: int) -> None:
    if not unverified:
        return
    each = [f"{v.pattern} at {v.where}: {v.reason}" for v in unverified]
    _LOGGER.warning("fuser.verify: %d of %d regions were not verified", len(each), count)
    for text in dict.fromkeys(each):
        _LOGGER.warning("fuser.verify: not verified: %s", text)


@contextlib.contextmanager
def beside(device: torch.device) -> Generator[None]:
    """Run the graph's own operators in the middle of its compile, as the user's program would."""
    kinds = dict.fromkeys(("cpu", device.type))
    casts = {kind: torch.get_autocast_dtype(kind) for kind in kinds
             if torch.is_autocast_enabled(kind)}  # fmt: skip
    with undisturbed(device), contextlib.ExitStack() as stack:
        for kind, dtype in casts.items():
            stack.enter_context(casting(torch.device(kind), dtype))
        yield


class _Judge:
    """Compares the regions of one graph.

    Attributes:
        verdicts: what was found, by the position of a rewrite.
    """

    def __init__(
        self,
        view: GraphView,
        planned: Sequence[Planned],
        options: Options,
        verdicts: dict[int, Verdict],
    ) -> None:
        self.view, self.planned, self.options, self.verdicts = view, planned, options, verdicts
        self._folder = Folder(view)
        self._compiled: tuple[Any, Any] | None = None

    def judge(self, inputs: Sequence[Any] | None) -> None:
        """Compare all regions at what they read when the graph has these inputs."""
        trials: dict[int, Trial] = {}
        for i, item in enumerate(self.planned):
            if i in self.verdicts:
                continue
            try:
                trials[i] = prepare(self.view, item, self._folder)
            except Exception as error:
                self._leave(i, error)
        if not trials:
            return
        readings = [self._reading(i, trial) for i, trial in trials.items()]
        device = next(iter(trials.values())).conditions.device
        try:
            with beside(device):
                observe(self.view, real(inputs), readings)
        except Exception as error:
            for i in trials.keys() - self.verdicts.keys():
                self._leave(i, error)

    def _reading(self, index: int, trial: Trial) -> Reading:
        rehearsal = trial.rehearsal
        nodes = {*rehearsal.inside, *rehearsal.match.nodes} - set(rehearsal.inputs)
        inside = sorted(nodes, key=self.view.order.__getitem__)

        def receive(values: list[Any]) -> None:
            try:
                self._decide(index, trial, values)
            except Exception as error:
                self._leave(index, error)

        return Reading(rehearsal.inputs, tuple(inside), receive)

    def _decide(self, index: int, trial: Trial, values: Sequence[Tensor]) -> None:
        item = self.planned[index]
        if memory.recall(item.match, item.emissions) is not None:
            return
        operands = trial.operands(values)
        with torch.autocast(trial.conditions.device.type, enabled=False):
            run = self._runnable(trial, operands)
            verdict = self._compared(item, trial, run, operands)
            if verdict.outcome == "wrong":
                memory.take_back(item.match, item.emissions, verdict)
                verdict = replace(verdict, script=self._reproduced(trial, operands, verdict))
                memory.take_back(item.match, item.emissions, verdict)
        self.verdicts[index] = verdict

    def _compared(
        self, item: Planned, trial: Trial, run: Any, operands: Sequence[Tensor]
    ) -> Verdict:
        names = [node.name for node in trial.rehearsal.inputs]
        try:
            compared = judge(trial.original, run, operands, trial.conditions, names)
        except ReplacementError as error:
            if self._original_raises(trial, operands):
                raise Unobservable(f"the original raises as well when compiled: {error}") from error
            return self._verdict(item, "wrong", f"it raises {error}")
        wrong = [str(c) for c in compared if c.problem]
        outcome = "wrong" if wrong else "verified"
        return self._verdict(item, outcome, "".join(wrong[:1]), compared)

    def _original_raises(self, trial: Trial, operands: Sequence[Tensor]) -> bool:
        """Whether the inner backend takes not even the original."""
        try:
            run = trial.compiled(trial.original, operands, self.options.inner)
            judge(trial.original, run, operands, trial.conditions)
        except Exception as error:
            swallow(error)
            return True
        return False

    def _runnable(self, trial: Trial, operands: Sequence[Tensor]) -> Any:
        """The replacement, compiled; of equal ones with equal operands, one after the other, the
        first."""
        shapes = [
            (x.dtype, x.shape, x.stride(), x.requires_grad, x.is_inference()) for x in operands
        ]
        holds = any(node.op == "get_attr" for node in trial.replacement.graph.nodes)
        key = (trial.replacement.code, trial.conditions, str(shapes))
        if holds or self._compiled is None or self._compiled[0] != key:
            found = trial.compiled(trial.replacement, operands, self.options.inner)
            self._compiled = (key, found)
        return self._compiled[1]

    def _reproduced(self, trial: Trial, operands: Sequence[Tensor], verdict: Verdict) -> str:
        target = self.options.debug if self.options.debug not in ("", "1") else ""
        try:
            found = minify(trial, operands, verdict.pattern, verdict.lowering, self.options)
            return str(write(found, verdict, target))
        except Exception as error:
            swallow(error)
            _LOGGER.warning("fuser.verify: no script was written: %s", first_sentence(error))
            return ""

    def _leave(self, index: int, error: Exception) -> None:
        """Not compared, for a reason."""
        told = isinstance(error, (Unrehearsable, Unobservable, NothingFiniteError))
        if not told:
            swallow(error)
        reason = str(error) if told else first_sentence(error)
        self.verdicts[index] = self._verdict(self.planned[index], "unverified", reason)

    def _verdict(
        self,
        item: Planned,
        outcome: str,
        reason: str = "",
        compared: tuple[Compared, ...] = (),
    ) -> Verdict:
        names = "; ".join(dict.fromkeys(e.name for e in item.emissions))
        lowering = names or ("opened" if item.match.opens else "replacement")
        place = where(item.match.anchor)
        return Verdict(item.match.pattern, place, lowering, outcome, reason, compared)
