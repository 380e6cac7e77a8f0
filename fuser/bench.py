"""A user's model in eager, compiled by Inductor and by fuser, in interleaved rounds.

Steps are timed by the clock, the host's part included, since that is what a program waits for. Each
round starts with the next way, and ratios are medians of the ratios within rounds, so that a
machine that slows down does so for all.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .allocated import peak
from .backend import fuser, listening
from .capture import capture_whole, failures_of
from .errors import FuserError
from .events import Record
from .inductor_private import fresh_cache, inductor
from .measure import finish
from .precision import tensors
from .report.report import Report
from .report.scope import optimize
from .report.text import summary

EAGER, INDUCTOR, FUSER = "eager", "inductor", "fuser"
ROUNDS = 15
SAMPLE = 5.0
"""Milliseconds that a sample takes at the least: a shorter step is repeated within it."""
Step = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """One way to run a model.

    Attributes:
        milliseconds: of a step, one figure a round.
        peak: bytes of tensors that one step makes and has at the same time.
        compile_seconds: of the first step, with empty caches; None where nothing is compiled.
    """

    milliseconds: tuple[float, ...]
    peak: int
    compile_seconds: float | None = None

    @property
    def median(self) -> float:
        """Milliseconds of a step."""
        return statistics.median(self.milliseconds)


@dataclass(frozen=True)
class Comparison:
    """A model, run in several ways.

    Attributes:
        ways: by name, `eager`, `inductor` and `fuser`.
        report: of fuser's compile.
        training: steps are forward and backward.
        device: where, in words.
    """

    ways: Mapping[str, Measured]
    report: Report
    training: bool
    device: str

    def ratio(self, name: str, base: str) -> float:
        """How many times as fast one way is as another: the median of all rounds."""
        pairs = zip(self.ways[base].milliseconds, self.ways[name].milliseconds, strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    def __str__(self) -> str:
        step = "forward and backward" if self.training else "forward"
        head = f"{'':<10}{'ms':>10}{'over eager':>12}{'over inductor':>15}"
        lines = [f"{step} on {self.device}", "", f"{head}{'compile s':>11}{'peak MiB':>10}"]
        for name, way in self.ways.items():
            compiled = "" if way.compile_seconds is None else f"{way.compile_seconds:.1f}"
            ratios = f"{self.ratio(name, EAGER):>11.2f}x{self.ratio(name, INDUCTOR):>14.2f}x"
            memory = f"{way.peak / 2**20:>10.1f}"
            lines.append(f"{name:<10}{way.median:>10.3f}{ratios}{compiled:>11}{memory}")
        return "\n".join([*lines, "", summary(self.report)])

    def to_json(self) -> dict[str, Any]:
        """`{schema: 1, device: str, training: bool, ways: {name: WAY}, rewritten: {pattern: int},
        left: int, declined: int}`; a WAY is `{milliseconds, over_eager, over_inductor: float,
        rounds: list of float, compile_seconds: float or null, peak_bytes: int}`."""
        patterns = dict.fromkeys(r.pattern for r in self.report.rewritten if r.count)
        return {
            "schema": 1,
            "device": self.device,
            "training": self.training,
            "ways": {name: self._way(name) for name in self.ways},
            "rewritten": {pattern: self.report.count(pattern) for pattern in patterns},
            "left": len(self.report.left),
            "declined": len(self.report.declined),
        }

    def _way(self, name: str) -> dict[str, Any]:
        way = self.ways[name]
        return {
            "milliseconds": way.median,
            "over_eager": self.ratio(name, EAGER),
            "over_inductor": self.ratio(name, INDUCTOR),
            "rounds": list(way.milliseconds),
            "compile_seconds": way.compile_seconds,
            "peak_bytes": way.peak,
        }


def bench(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    training: bool,
    options: Mapping[str, Any] | None = None,
    rounds: int = ROUNDS,
) -> Comparison:
    """Run a model in eager, by Inductor and by fuser.

    Args:
        fn: a module or function, or one of these compiled, whose own options are not looked at.
        args, kwargs: its arguments.
        training: steps are forward and backward, from the sum of all outputs that have gradients.
        options: fuser's.
        rounds: how often each way is timed.

    Raises:
        FuserError: nothing that the model returns has a gradient, or a backend fails.
    """
    target = getattr(fn, "_orig_mod", getattr(fn, "_torchdynamo_orig_callable", fn))
    device = _device(target, args, kwargs)
    record = Record()

    def ours(gm: Any, inputs: Any) -> Callable[..., Any]:
        return fuser(gm, inputs, options=options)

    theirs = inductor(None, {})
    steps = {EAGER: _step(target, args, kwargs, training)}
    steps[EAGER]()
    seconds: dict[str, float | None] = {EAGER: None}
    for compiler in (theirs, ours):
        _prime(compiler, device)
    with listening(record.extend):
        for name, compiler in ((INDUCTOR, theirs), (FUSER, ours)):
            compiled = optimize(target, compiler)
            if name == FUSER and failures_of(fn) is not None:
                capture_whole(compiled, strict=False)
            steps[name] = _step(compiled, args, kwargs, training)
            seconds[name] = _first(name, steps[name], device)
    times = _interleaved(steps, device, rounds)
    ways = {n: Measured(times[n], peak(step, device), seconds[n]) for n, step in steps.items()}
    return Comparison(ways, Report.of(record), training, _named(device))


def _device(fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    found = [x.device for x in tensors((args, dict(kwargs), _parameters(fn)))]
    return next((device for device in found if device.type == "cuda"), torch.device("cpu"))


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def _parameters(fn: Any) -> list[torch.Tensor]:
    return list(fn.parameters()) if isinstance(fn, torch.nn.Module) else []


def _step(
    fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], training: bool
) -> Step:
    """One step, which leaves no gradients behind."""
    given = [x for x in tensors((args, dict(kwargs))) if x.requires_grad and x.is_leaf]
    wanted = [*_parameters(fn), *given]

    def infer() -> None:
        with torch.no_grad():
            fn(*args, **kwargs)

    def train() -> None:
        with torch.enable_grad():
            results = [y for y in tensors(fn(*args, **kwargs)) if y.requires_grad]
            if not results:
                raise FuserError(
                    "nothing that the model returns has a gradient: a module needs parameters that "
                    "require one, a function inputs that do (torch.randn(..., requires_grad=True))."
                )
            torch.autograd.backward([y.sum() for y in results])
        for x in wanted:
            x.grad = None

    return train if training else infer


def _prime(compiler: Callable[..., Any], device: torch.device) -> None:
    """What a compiler does once in a process (imports, tables, precompiled headers) belongs to no
    model's compile."""

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.mT, -1) @ x.sin()

    x = torch.ones(1, 2, 4, 4, device=device, requires_grad=True)
    optimize(small, compiler)(x).sum().backward()


def _first(name: str, step: Step, device: torch.device) -> float:
    """Seconds of a first step, which compiles."""
    with fresh_cache():
        start = time.perf_counter()
        try:
            step()
        except FuserError:
            raise
        except Exception as error:
            raise FuserError(
                f"{name} failed on the model: {type(error).__name__}: {error}"
            ) from error
        finish(device)
        return time.perf_counter() - start


def _interleaved(
    steps: Mapping[str, Step], device: torch.device, rounds: int
) -> dict[str, tuple[float, ...]]:
    """Milliseconds of each step by round; entry i of each is from round i."""
    once: dict[str, float] = {}
    for name, step in steps.items():
        _timed(step, device, 1)  # which touches cold memory
        once[name] = _timed(step, device, 1)
    number = {name: max(1, math.ceil(SAMPLE / max(ms, 1e-3))) for name, ms in once.items()}
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(_timed(steps[name], device, number[name]))
    return {name: tuple(found) for name, found in times.items()}


def _timed(step: Step, device: torch.device, number: int) -> float:
    """Milliseconds of one step, the mean of several in a row."""
    finish(device)
    start = time.perf_counter()
    for _ in range(number):
        step()
    finish(device)
    return (time.perf_counter() - start) * 1e3 / number
