"""Where a benchmark runs: how a call is timed and its memory weighed there.

Everything that only CUDA can do is in the methods of `Gpu`; tests put a device of their own there.
"""

from __future__ import annotations

import fcntl
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks import limits
from fuser.allocated import on_host
from fuser.profiling.machine import cpu_name
from fuser.profiling.work import measured_rates

Call = Callable[[], object]
MIB = 2**20
FLUSHED_BYTES = 256 * MIB
"""More than any second-level cache holds (H100 and H200: 50 MiB)."""


HEADSTART = 16
"""Writes of so many bytes ahead of each call: about a millisecond on an H200."""


class NoSuchDevice(Exception):
    """What was asked for is not there; says what is missing."""


class Device(ABC):
    """A place to run.

    Attributes:
        place: where tensors are.
        graphs: steps are replayed from CUDA graphs, those of every provider alike.
    """

    def __init__(self, place: torch.device, *, graphs: bool = False) -> None:
        self.place, self.graphs = place, graphs

    @property
    @abstractmethod
    def name(self) -> str:
        """What the CSV's gpu_name holds."""

    @property
    @abstractmethod
    def rates(self) -> limits.Rates | None:
        """What it can do at the most; None where limits say nothing."""

    @abstractmethod
    def timed_ms(self, call: Call, number: int = 1) -> float:
        """Milliseconds of one call, as the mean of `number` calls in a row."""

    @abstractmethod
    def allocations(self, call: Call) -> tuple[float, float | None]:
        """(peak, largest single allocation) of one call in MiB, beyond what was there before."""

    def repeatable(self, call: Call) -> Call:
        """The call in the form that is timed."""
        return call

    def beside_others(self) -> AbstractContextManager[object]:
        """Within the block, other processes may use the device too."""
        return nullcontext()

    def alone(self) -> AbstractContextManager[object]:
        """Within the block, nobody else who asks so does."""
        return nullcontext()

    @property
    def is_shared(self) -> bool:
        """Other processes compile at the same time, so that it says nothing how long that takes."""
        return False

    def release(self) -> None:  # noqa: B027
        """Gives back what nobody uses any more; a CPU keeps nothing."""


class Processor(Device):
    """The CPU."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    @property
    def name(self) -> str:
        return f"{cpu_name()} ({os.cpu_count()} cores)"

    @property
    def rates(self) -> limits.Rates | None:
        return None

    def timed_ms(self, call: Call, number: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(number):
            call()
        return (time.perf_counter() - start) * 1e3 / number

    def allocations(self, call: Call) -> tuple[float, float | None]:
        peak, largest = on_host(call)
        return peak / MIB, largest / MIB


class Event(Protocol):
    """A mark in a stream of work."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float: ...


class Gpu(Device):
    """A CUDA device: events around each call, and the second-level cache flushed before it.

    Attributes:
        lock: a file by which processes agree who times and who only compiles; None without others.
    """

    def __init__(
        self, place: torch.device, *, graphs: bool = False, lock: Path | None = None
    ) -> None:
        super().__init__(place, graphs=graphs)
        self.lock = lock

    def beside_others(self) -> AbstractContextManager[object]:
        return nullcontext() if self.lock is None else locked(self.lock, fcntl.LOCK_SH)

    def alone(self) -> AbstractContextManager[object]:
        return nullcontext() if self.lock is None else locked(self.lock, fcntl.LOCK_EX)

    @property
    def is_shared(self) -> bool:
        return self.lock is not None

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.place)

    @property
    def rates(self) -> limits.Rates | None:
        return self._rates

    @cached_property
    def _rates(self) -> limits.Rates:
        for part, known in limits.RATES.items():
            if part in self.name:
                return known
        return measured_rates(self.timed_ms, self.place)

    def timed_ms(self, call: Call, number: int = 1) -> float:
        """The device is kept busy until the host has asked for the whole call, whose Python would
        be measured otherwise."""
        total = 0.0
        for _ in range(number):
            for _ in range(HEADSTART):
                self._flush()
            begin, end = self._event(), self._event()
            begin.record()
            call()
            end.record()
            end.synchronize()
            total += begin.elapsed_time(end)
        return total / number

    def allocations(self, call: Call) -> tuple[float, float | None]:
        """The peak, from the allocator's own statistics, which tell no single sizes."""
        before = self._restart_peak()
        call()
        return (self._peak() - before) / MIB, None

    def repeatable(self, call: Call) -> Call:
        return self._captured(call) if self.graphs else call

    def release(self) -> None:
        torch.cuda.empty_cache()

    # -- what only CUDA can do

    @cached_property
    def _buffer(self) -> torch.Tensor:
        return torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=self.place)

    def _flush(self) -> None:
        self._buffer.zero_()

    def _event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)

    def _restart_peak(self) -> int:
        """Bytes that are allocated now, which the peak is counted from."""
        torch.cuda.synchronize(self.place)
        torch.cuda.reset_peak_memory_stats(self.place)
        return torch.cuda.memory_allocated(self.place)

    def _peak(self) -> int:
        torch.cuda.synchronize(self.place)
        return torch.cuda.max_memory_allocated(self.place)

    def _captured(self, call: Call) -> Call:
        """A replay of the call's kernels, warmed up in a stream of its own, as capturing asks."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(3):
                call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay


@contextmanager
def locked(path: Path, kind: int) -> Generator[None]:
    """Within the block, a file is locked: `LOCK_SH` beside others of that kind, or `LOCK_EX`."""
    with path.open("w") as file:
        fcntl.flock(file, kind)
        yield


def open_device(place: torch.device, *, graphs: bool = False, lock: Path | None = None) -> Device:
    """The device of that name.

    Args:
        place: its name.
        graphs: whether steps are replayed from CUDA graphs.
        lock: of a GPU that several processes use at a time.

    Raises:
        NoSuchDevice: it is not there.
    """
    if place.type == "cpu":
        if graphs:
            raise NoSuchDevice("CUDA graphs need a CUDA device")
        return Processor()
    if place.type != "cuda":
        raise NoSuchDevice(f"the benchmarks know 'cpu' and 'cuda', not {str(place)!r}")
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "no usable GPU or driver was found" if built else "this torch is built without CUDA"
        raise NoSuchDevice(f"there is no CUDA device: {why} (torch {torch.__version__})")
    if (place.index or 0) >= torch.cuda.device_count():
        raise NoSuchDevice(f"there is no {place}: {torch.cuda.device_count()} found")
    return Gpu(place, graphs=graphs, lock=lock)
