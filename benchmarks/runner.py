"""How a workload is measured, the same way for every provider.

    compile     cold (empty on-disk caches, a fresh Dynamo), forward and backward, in seconds
    error       largest difference from the same function in fp64, relative to its largest value
    time        interleaved rounds with the order rotated; p20, median and p80 in milliseconds
    memory      peak and largest single allocation of one step, from the profiler's record
    ratio       median of the ratios *within* each round, so that slow drifts cancel

Dynamo is reset once a workload, not between its providers: a reset drops the compiled code of
the providers before it, and interleaving needs all of them alive. Each provider compiles a
function with its own code object instead, and a recompile while timing is an error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from textwrap import shorten
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor.utils import fresh_cache
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from benchmarks.providers import EAGER, Function, Provider

Call = Callable[[], object]
Tensors = tuple[torch.Tensor, ...]

THREADS = 2


@dataclass(frozen=True)
class Case:
    """A workload made concrete: one dtype, one device, one mode.

    Attributes:
        fn: a plain function of `args` returning one tensor.
        args: its arguments.
        cotangent: the gradient of the output; None times the forward alone, without autograd.
        leaves: what gradients are taken of; by default the arguments that require one.
        yardstick: the call that the `sdpa` provider times, with the same arguments.
        double: builds the fp64 twin; by default the same function on fp64 arguments.
    """

    fn: Function
    args: Tensors
    cotangent: torch.Tensor | None = None
    leaves: Tensors = ()
    yardstick: Function | None = None
    double: Callable[[], Case] | None = None

    def step(self, fn: Function) -> Tensors:
        """One step of `fn` in this case's mode: `(output, *gradients)`."""
        if self.cotangent is None:
            with torch.no_grad():
                return (fn(*self.args),)
        out = fn(*self.args)
        leaves = self.leaves or tuple(a for a in self.args if a.requires_grad)
        grads = torch.autograd.grad(out, leaves, self.cotangent, allow_unused=True)
        return (out, *(g for g in grads if g is not None))

    def in_double(self) -> Case:
        """The same case in fp64."""
        if self.double is not None:
            return self.double()
        cotangent = None if self.cotangent is None else self.cotangent.double()
        return replace(self, args=tuple(map(as_double, self.args)), cotangent=cotangent)


@dataclass(frozen=True)
class Workload:
    """A named workload that can be built for a dtype and a mode.

    Attributes:
        family: the benchmark it belongs to.
        name: unique within its family.
        build: `(dtype, device, mode) -> Case`; mode is "forward" or "full" (and backward).
        modes: the modes it is measured in.
        x: the size it is filed under in the CSV, as (name, value).
        config: anything else worth keeping, for the CSV's extra_config.
    """

    family: str
    name: str
    build: Callable[[torch.dtype, torch.device, str], Case]
    modes: tuple[str, ...] = ("forward",)
    x: tuple[str, int] = ("S", 1024)
    config: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Effort:
    """How much time a workload may take.

    Attributes:
        min_rounds, max_rounds: limits on the number of interleaved rounds.
        budget_s: seconds of rounds aimed at between the two.
        min_sample_ms: a shorter call is repeated within its sample to reach this.
    """

    min_rounds: int = 9
    max_rounds: int = 60
    budget_s: float = 12.0
    min_sample_ms: float = 5.0


QUICK = Effort(min_rounds=3, max_rounds=3, budget_s=0.0, min_sample_ms=0.0)


@dataclass
class Measure:
    """What was measured of one provider; None where it does not apply.

    Attributes:
        times_ms: one figure a round.
        error: see `relative_error`; compile_s: first call, in seconds, caches empty.
        rewrites: fuser's counters, by pattern id.
        peak_mb, largest_mb: of one step, beyond what was allocated before it (MiB).
        failure: the exception, where the provider did not get through; the rest is then empty.
    """

    times_ms: list[float] = field(default_factory=list[float])
    error: float | None = None
    compile_s: float | None = None
    rewrites: dict[str, int] = field(default_factory=dict[str, int])
    peak_mb: float | None = None
    largest_mb: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Result:
    """One workload in one mode and dtype, all providers."""

    workload: Workload
    mode: str
    dtype: torch.dtype
    measures: dict[str, Measure]

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float] | None:
        """How many times faster `fast` is than `slow`: (p20, median, p80) over the rounds."""
        ours, theirs = self.measures.get(fast), self.measures.get(slow)
        if ours is None or theirs is None or not (ours.times_ms and theirs.times_ms):
            return None
        return spread(paired_ratios(theirs.times_ms, ours.times_ms))


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1), linear between neighbours as in numpy's default."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """(p20, median, p80)."""
    return quantile(samples, 0.2), quantile(samples, 0.5), quantile(samples, 0.8)


def paired_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios round by round; both lists must come from the same rounds."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def geomean(values: Sequence[float]) -> float:
    """The geometric mean of positive values."""
    if not values:
        raise ValueError("no values")
    return math.exp(sum(map(math.log, values)) / len(values))


def as_double(x: torch.Tensor) -> torch.Tensor:
    """fp64 copy of a floating tensor (a leaf like the original); other tensors as they are."""
    return x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x


class InDouble(TorchFunctionMode):
    """Runs fp32 steps in fp64: `softmax(dtype=float32)`, `.to(float32)`, `.float()`.

    Models upcast explicitly; without this their fp64 twin would be an fp32 reference.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        widen = {torch.float32: torch.float64}
        args = [widen.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        named = (kwargs or {}).items()
        kwargs = {k: widen.get(a, a) if isinstance(a, torch.dtype) else a for k, a in named}
        return func(*args, **kwargs)


def reference(case: Case) -> Tensors:
    """Outputs and gradients of the case in fp64."""
    twin = case.in_double()
    with InDouble():
        return twin.step(twin.fn)


def relative_error(got: Tensors, want: Tensors) -> float:
    """Largest |got - want| / max|want| over outputs and gradients; inf where NaNs disagree."""
    worst = 0.0
    for g, w in zip(got, want, strict=True):
        g, w = g.detach().double(), w.detach().double()
        if not torch.equal(g.isnan(), w.isnan()):
            return math.inf
        size = w.nan_to_num().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        worst = max(worst, ((g - w).nan_to_num().abs().max() / size).item())
    return worst


def timed_ms(call: Call, device: torch.device, number: int = 1) -> float:
    """Milliseconds of one call, as the mean of `number` calls in a row.

    On a GPU the second-level cache is flushed before, and CUDA events do the timing.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - start) * 1e3 / number
    total = 0.0
    for _ in range(number):
        torch.empty(256 * 2**20, dtype=torch.int8, device=device).zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        total += begin.elapsed_time(end)
    return total / number


def interleave(
    calls: Mapping[str, Call], effort: Effort, device: torch.device
) -> dict[str, list[float]]:
    """Times all calls round by round, each round starting with the next one.

    Returns:
        Milliseconds by name, one figure a round; entry i of every list is from round i.
    """
    if not calls:
        return {}
    # The first call after a compile touches cold memory; the second tells how long one takes.
    for call in calls.values():
        call()
    once = {name: timed_ms(call, device) for name, call in calls.items()}
    number = {n: max(1, math.ceil(effort.min_sample_ms / max(t, 1e-3))) for n, t in once.items()}
    round_s = sum(once[n] * number[n] for n in calls) / 1e3
    rounds = round(effort.budget_s / max(round_s, 1e-6))
    rounds = min(max(rounds, effort.min_rounds), effort.max_rounds)
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(timed_ms(calls[name], device, number[name]))
    return times


def allocations(call: Call, device: torch.device) -> tuple[float, float]:
    """(peak, largest single allocation) of one call in MiB, beyond what was there before.

    From the profiler's record of every allocation: resident set size hides small buffers that
    malloc reuses, and would not show whether an S-by-S tensor was made.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True, acc_events=True) as record:
        call()
    profiler: Any = record.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    events = [e for e in events if (e.device_type().name == "CUDA") == (device.type == "cuda")]
    now = peak = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak, largest = max(peak, now), max(largest, event.nbytes())
    return peak / 2**20, largest / 2**20


def compile_cold(call: Call, *, backward: bool) -> float:
    """Seconds of a first call with empty caches, donated buffers off where it has a backward."""
    donated: AbstractContextManager[object] = nullcontext()
    if backward:
        donated = functorch_config.patch(donated_buffer=False)
    with fresh_cache(), donated:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def measure(
    workload: Workload,
    mode: str,
    dtype: torch.dtype,
    device: torch.device,
    providers: Sequence[Provider],
    effort: Effort,
) -> Result:
    """Measures one workload in one mode and dtype; a provider that fails does not stop the rest."""
    torch.set_num_threads(THREADS)
    torch._dynamo.reset()
    torch.manual_seed(0)
    case = workload.build(dtype, device, mode)
    expected = reference(case)
    result = Result(workload, mode, dtype, {})
    calls: dict[str, Call] = {}
    for provider in providers:
        if provider.yardstick and case.yardstick is None:
            continue
        record = result.measures[provider.name] = Measure()
        try:
            calls[provider.name] = _first_call(provider, case, expected, record, device)
        except Exception as error:  # a benchmark reports a crash, whatever it is, and goes on
            record.failure = shorten(f"{type(error).__name__}: {error}", width=400)
    with torch.compiler.set_stance("fail_on_recompile"):
        times = interleave(calls, effort, device)
    for name, samples in times.items():
        result.measures[name].times_ms = samples
    return result


def _first_call(
    provider: Provider, case: Case, expected: Tensors, record: Measure, device: torch.device
) -> Call:
    """Compiles, checks and weighs one provider; returns the call to time."""
    fn = provider.prepare(case.fn)
    if provider.yardstick:
        assert case.yardstick is not None
        fn = case.yardstick

    def call() -> Tensors:
        return case.step(fn)

    if provider.backend is not None:
        counters["fuser"].clear()
        record.compile_s = compile_cold(call, backward=case.cotangent is not None)
        record.rewrites = {key: int(n) for key, n in counters["fuser"].items() if n}
    if not provider.yardstick:
        record.error = relative_error(call(), expected)
    call()
    record.peak_mb, record.largest_mb = allocations(call, device)
    return call


def prime(providers: Sequence[Provider], device: torch.device) -> None:
    """A small forward and backward by every compiler, so that no workload pays for first-time work.

    That is: imports, Inductor's own pattern tables, the precompiled C++ headers.
    """

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.mT, -1) @ x.sin()

    x = torch.ones(1, 2, 4, 4, device=device, requires_grad=True)
    for provider in providers:
        if provider.backend is not None:
            provider.prepare(small)(x).sum().backward()


def error_ratio(result: Result, name: str) -> float | None:
    """A provider's error over eager's; 1.0 where both are nil."""
    eager, other = result.measures.get(EAGER), result.measures.get(name)
    if eager is None or other is None or eager.error is None or other.error is None:
        return None
    if eager.error == 0.0:
        return 1.0 if other.error == 0.0 else math.inf
    return other.error / eager.error
