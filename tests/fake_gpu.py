"""A GPU on the CPU, for what the benchmarks ask of one."""

from __future__ import annotations

import torch

from benchmarks import devices
from benchmarks.devices import MIB, Gpu

CPU = torch.device("cpu")


class FakeGpu(Gpu):
    """A GPU on the CPU: it notes what it is asked for, and its clock ticks once an event."""

    def __init__(self, *, graphs: bool = False) -> None:
        super().__init__(CPU, graphs=graphs)
        self.notes: list[str] = []
        self.held, self.highest, self.clock = 100 * MIB, 0, 0.0

    @property
    def name(self) -> str:
        return "NVIDIA H200 (of paper)"

    def release(self) -> None:
        self.notes.append("release")

    def _flush(self) -> None:
        self.notes.append("flush")

    def _event(self) -> devices.Event:
        return FakeEvent(self)

    def _restart_peak(self) -> int:
        self.highest = self.held
        return self.held

    def _peak(self) -> int:
        return self.highest

    def _captured(self, call: devices.Call) -> devices.Call:
        self.notes.append("capture")
        call()
        return lambda: self.notes.append("replay")


class FakeEvent:
    """An event of the fake GPU."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.gpu.clock += 1.0
        self.at = self.gpu.clock
        self.gpu.notes.append("record")

    def synchronize(self) -> None:
        self.gpu.notes.append("wait")

    def elapsed_time(self, end_event: FakeEvent) -> float:
        return end_event.at - self.at
