"""Parts of a graph and whole steps, measured in turn."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from .. import measure
from ..inductor_private import attention_patterns_off, inductor
from ..measure import Run, undisturbed
from ..rehearsal import casting, stepping
from .parts import Parts, Piece

Clock: TypeAlias = Callable[[], float]
"""Seconds."""
MOST_ROUNDS, SECONDS = 25, 20.0
"""A profile runs every part this often, unless it takes longer than that; three times at least."""


def compiled(
    parts: Parts, piece: Piece, *, ours: bool, made: Callable[..., Any] | None = None
) -> Run:
    """A part, compiled by Inductor and run once; a run takes gradients too, in training.

    Args:
        parts: whose it is.
        piece: the part.
        ours: Inductor's own attention patterns are off, as they are for graphs rewritten here.
        made: the part as it was compiled already.
    """
    off = attention_patterns_off(parts.device) if ours else contextlib.nullcontext()
    with undisturbed(parts.device), torch.set_grad_enabled(parts.training):
        with casting(parts.device, parts.autocast), off:
            call = made or inductor(None, {})(piece.module, piece.operands)
            run = stepping(call, piece.operands, training=parts.training)
            run()  # what compiles when it first runs, a backward say
    return run


def medians(
    steps: Mapping[str, Run],
    pieces: Mapping[str, Run],
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each run, in rounds in which all of them run, one after the other.

    Each runs twice in a round, and the second is timed: what is in caches is then what the run
    itself leaves there, whichever ran before. A run has been called once before. On a GPU a step
    lasts until the device has done it, so that what the device waits for the host is in it; a piece
    is the device's own time, which has none.
    """
    with undisturbed(device):
        if device.type != "cuda":
            return _in_rounds({**steps, **pieces}, device, clock)
        with torch.cuda.device(device):
            return {**_in_rounds(steps, device, clock), **measure.medians(pieces, device)}


def _in_rounds(runs: Mapping[str, Run], device: torch.device, clock: Clock) -> dict[str, float]:
    def once(run: Run) -> float:
        measure.finish(device)
        start = clock()
        run()
        measure.finish(device)
        return clock() - start

    first = [once(run) for run in runs.values()]
    rounds = int(min(MOST_ROUNDS, max(3, SECONDS / max(2 * sum(first), 1e-6))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            found[name].append(once(run))
    return {name: statistics.median(times) * 1e3 for name, times in found.items()}
