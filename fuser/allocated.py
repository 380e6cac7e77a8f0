"""How much memory a call has at the most, beyond what was there before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that a call has at the same time, on a GPU or, anywhere else, in the host's
    memory."""
    if device.type != "cuda":
        return on_host(call)[0]
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def on_host(call: Callable[[], object]) -> tuple[int, int]:
    """(peak, largest single allocation) in bytes, from the profiler's record of every allocation.

    Resident set size hides small buffers that malloc reuses, and would not show whether an
    S-by-S tensor was made.
    """
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=True) as record:
        call()
    profiler: Any = record.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = largest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most, largest = max(most, now), max(largest, event.nbytes())
    return most, largest
