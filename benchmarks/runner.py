"""How a workload is measured, the same way for every provider and on every device.

    compile     cold (empty on-disk caches, a fresh Dynamo) and warm, forward and backward, in s
    error       largest difference from the same function in fp64, relative to its largest value
    time        interleaved rounds with the order rotated; p20, median and p80 in milliseconds
    memory      peak of one step, and its largest single allocation where the device tells
    ratio       median of the ratios *within* each round, so that slow drifts cancel

Dynamo is reset once a workload, not between its providers: a reset drops the compiled code of
the providers before it, and interleaving needs all of them alive. Each provider compiles a
function with its own code object instead, and a recompile while timing is an error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from textwrap import shorten

import torch
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config
from torch._inductor.utils import fresh_cache

from benchmarks.cases import Case, Tensors, Workload, reference
from benchmarks.devices import Call, Device
from benchmarks.figures import Measure, Result
from benchmarks.providers import Function, Provider
from fuser.outlets import rewrites

THREADS = 2


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


def interleave(calls: Mapping[str, Call], effort: Effort, device: Device) -> dict[str, list[float]]:
    """Times all calls round by round, each round starting with the next one.

    Returns:
        Milliseconds by name, one figure a round; entry i of every list is from round i.
    """
    if not calls:
        return {}
    # The first call after a compile touches cold memory; the second tells how long one takes.
    for call in calls.values():
        call()
    once = {name: device.timed_ms(call) for name, call in calls.items()}
    number = {n: max(1, math.ceil(effort.min_sample_ms / max(t, 1e-3))) for n, t in once.items()}
    round_s = sum(once[n] * number[n] for n in calls) / 1e3
    rounds = round(effort.budget_s / max(round_s, 1e-6))
    rounds = min(max(rounds, effort.min_rounds), effort.max_rounds)
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(device.timed_ms(calls[name], number[name]))
    return times


def first_calls(calls: Sequence[Call], *, backward: bool) -> list[float]:
    """Seconds of first calls, one after the other, of which the first one finds empty caches.

    Donated buffers are off where there is a backward: it is to run more than once.
    """
    donated: AbstractContextManager[object] = nullcontext()
    if backward:
        donated = functorch_config.patch(donated_buffer=False)
    seconds: list[float] = []
    with fresh_cache(), donated:
        for call in calls:
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return seconds


def measure(
    workload: Workload,
    mode: str,
    dtype: torch.dtype,
    device: Device,
    providers: Sequence[Provider],
    effort: Effort,
) -> Result:
    """Measures one workload in one mode and dtype; a provider that fails does not stop the rest."""
    torch.set_num_threads(THREADS)
    torch._dynamo.reset()
    torch.manual_seed(0)
    result = Result(workload, mode, dtype, {})
    calls: dict[str, Call] = {}

    def prepare(provider: Provider, again: type[Exception] | None = None) -> bool:
        record = result.measures[provider.name] = Measure()
        try:
            calls[provider.name] = _prepared(provider, case, expected, record, device)
        except Exception as error:  # a benchmark reports a crash, whatever it is, and goes on
            record.failure = shorten(f"{type(error).__name__}: {error}", width=400)
            return again is not None and isinstance(error, again)
        finally:
            device.release()
        return False

    with device.beside_others():
        case = workload.build(dtype, device.place, mode)
        expected = reference(case)
        device.release()
        running = [p for p in providers if not p.port or p.port in case.ports]
        again = torch.OutOfMemoryError if device.is_shared else None
        crowded = [p for p in running if prepare(p, again=again)]
    with device.alone():
        for provider in crowded:
            prepare(provider)
        with torch.compiler.set_stance("fail_on_recompile"):
            times = interleave(calls, effort, device)
        device.release()
    for name, samples in times.items():
        result.measures[name].times_ms = samples
    return result


def _prepared(
    provider: Provider, case: Case, expected: Tensors, record: Measure, device: Device
) -> Call:
    """Compiles, checks and weighs one provider; returns the call to time."""
    port = case.ports[provider.port] if provider.port else None
    source = case.fn if port is None else port.fn
    fn = provider.prepare(source, loops=case.loops)

    def call() -> Tensors:
        return case.step(fn)

    if provider.backend is not None:
        _compile(provider, case, source, call, record, shared=device.is_shared)
    record.yardstick = port is not None and not port.same
    got = call()
    if not record.yardstick:
        record.error = case.error(got, expected)
    del got
    record.peak_mb, record.largest_mb = device.allocations(call)
    return device.repeatable(call)


def _compile(
    provider: Provider, case: Case, source: Function, call: Call, record: Measure, *, shared: bool
) -> None:
    """The first call, and that of another copy, which finds what the first one left on disk.

    On a device that others share it is the first one alone, and takes who knows how long.
    """

    def cold() -> None:
        counters["fuser"].clear()
        call()
        record.rewrites = rewrites()

    if shared:
        with functorch_config.patch(donated_buffer=False):
            cold()
        return
    again = provider.prepare(source, label=f"{provider.name}_again", loops=case.loops)
    backward = bool(case.cotangents)
    seconds = first_calls([cold, lambda: case.step(again)], backward=backward)
    record.compile_s, record.warm_s = seconds


def prime(providers: Sequence[Provider], device: Device) -> None:
    """A small forward and backward by every compiler, so that no workload pays for first-time work.

    That is: imports, Inductor's own pattern tables, the precompiled C++ headers.
    """

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.mT, -1) @ x.sin()

    x = torch.ones(1, 2, 4, 4, device=device.place, requires_grad=True)
    for provider in providers:
        if provider.backend is not None and not provider.port:
            provider.prepare(small)(x).sum().backward()
