"""Private APIs of torch that its tools read: the structured trace, and ranges in profiles."""

from __future__ import annotations

import contextlib
from typing import Any

from torch._C._profiler import _RecordFunctionFast
from torch._logging import trace_structured
from torch._logging._internal import trace_log
from torch.autograd import profiler


def is_traced() -> bool:
    """Whether somebody writes a structured trace, as `TORCH_TRACE=folder` does."""
    return bool(trace_log.handlers)


def trace_artifact(name: str, encoding: str, payload: str) -> None:
    """Put a file beside the graph that is being compiled, where tlparse shows it.

    Args:
        name: of the artifact.
        encoding: `json` or `string`.
        payload: its text.
    """
    about = {"name": name, "encoding": encoding}
    trace_structured("artifact", metadata_fn=lambda: about, payload_fn=lambda: payload)


def is_profiled() -> bool:
    """Whether a profiler of torch's is on (`torch.profiler`, `emit_nvtx`, `emit_itt`)."""
    return profiler._is_profiler_enabled


def named_range(name: str) -> contextlib.AbstractContextManager[Any]:
    """A range of a profile. Unlike `torch.profiler.record_function` it is no operator, which a
    trace would record."""
    return _RecordFunctionFast(name)
