"""What was measured, and the arithmetic over its rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.cases import Workload
from benchmarks.limits import Rates
from benchmarks.providers import EAGER, OURS

Spread = tuple[float, float, float]
"""20th percentile, median, 80th percentile."""


@dataclass
class Measure:
    """What was measured of one provider; None where it does not apply.

    Attributes:
        times_ms: one figure a round.
        error: see `cases.relative_error`.
        compile_s: first call, in seconds, caches empty.
        warm_s: first call of another copy of the function, caches filled by the one before.
        rewrites: fuser's counters, by pattern id.
        peak_mb: of one step, beyond what was allocated before it (MiB).
        largest_mb: the largest single allocation of one step (MiB).
        failure: the exception, where the provider did not get through; the rest is then empty.
        yardstick: what ran does less than the workload, and is no peer.
    """

    times_ms: list[float] = field(default_factory=list[float])
    error: float | None = None
    compile_s: float | None = None
    warm_s: float | None = None
    rewrites: dict[str, int] = field(default_factory=dict[str, int])
    peak_mb: float | None = None
    largest_mb: float | None = None
    failure: str | None = None
    yardstick: bool = False


@dataclass(frozen=True)
class Result:
    """One workload in one mode and dtype, all providers."""

    workload: Workload
    mode: str
    dtype: torch.dtype
    measures: dict[str, Measure]

    def ratio(self, slow: str, fast: str) -> Spread | None:
        """How many times faster `fast` is than `slow`: (p20, median, p80) over the rounds."""
        ours, theirs = self.measures.get(fast), self.measures.get(slow)
        if ours is None or theirs is None or not (ours.times_ms and theirs.times_ms):
            return None
        return spread(paired_ratios(theirs.times_ms, ours.times_ms))

    def best_peer(self) -> str | None:
        """The fastest provider that is not ours, yardsticks left out."""
        peers = {n: m for n, m in self.measures.items() if n not in OURS and not m.yardstick}
        timed = {n: spread(m.times_ms)[1] for n, m in peers.items() if m.times_ms}
        return min(timed, key=lambda n: timed[n]) if timed else None

    def limit_ms(self, rates: Rates | None) -> float | None:
        """The least that the device could take, where its rates and the work are known."""
        if rates is None or self.workload.work is None:
            return None
        return self.workload.work(self.dtype, self.mode).limit_ms(rates)

    def share_of_limit(self, name: str, rates: Rates | None) -> Spread | None:
        """The limit over a provider's time; 1 is as fast as can be."""
        limit, measure = self.limit_ms(rates), self.measures.get(name)
        if limit is None or measure is None or not measure.times_ms:
            return None
        return spread([limit / t for t in measure.times_ms])


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1), linear between neighbours as in numpy's default."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def spread(samples: Sequence[float]) -> Spread:
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


def error_ratio(result: Result, name: str) -> float | None:
    """A provider's error over eager's; 1.0 where both are nil."""
    eager, other = result.measures.get(EAGER), result.measures.get(name)
    if eager is None or other is None or eager.error is None or other.error is None:
        return None
    if eager.error == 0.0:
        return 1.0 if other.error == 0.0 else math.inf
    return other.error / eager.error
