"""How long candidates take on this device: measured once, remembered on disk.

Nothing is measured unless the user asks Inductor to measure too (`mode="max-autotune"`), and only
on a GPU. Results lie beside the generated modules, one file a question, named by a digest of all
that the answer depends on; another process may read or write the same file at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeAlias

import torch

from .disk import folder, write_whole
from .errors import FuserWarning, first_sentence
from .torch_private import apart

ROUNDS = 25
"""Times that every candidate runs, in turn with the others."""
FLUSH = 256 << 20
"""Bytes that are written before each run, so that no candidate finds its operands in a cache: more
than the second-level cache of any GPU."""
HEADSTART = 20
"""Most writes of so many bytes before each run, where the host is slow to ask for it."""

Run: TypeAlias = Callable[[], object]
Times: TypeAlias = "dict[str, float | Exception]"
"""Milliseconds by name, or why there are none."""

_wanted: ContextVar[bool] = ContextVar("autotuning", default=False)
_strict: ContextVar[bool] = ContextVar("strict", default=False)
_known: dict[str, Any] = {}


@contextlib.contextmanager
def autotuning(wanted: bool, *, strict: bool = False) -> Generator[None]:
    """Within the block, whether choices are measured, and whether a failure of that raises."""
    tokens = _wanted.set(wanted), _strict.set(strict)
    try:
        yield
    finally:
        _wanted.reset(tokens[0])
        _strict.reset(tokens[1])


def is_wanted(device: torch.device) -> bool:
    """Whether choices are measured on a device."""
    return _wanted.get() and is_measurable(device)


def is_measurable(device: torch.device) -> bool:
    """Whether times on a device mean something: on a GPU that is there."""
    return device.type == "cuda" and torch.cuda.is_available()


def is_strict() -> bool:
    """Whether failures raise."""
    return _strict.get()


def failed(what: str, error: Exception) -> None:
    """A measurement failed: one warning, or in strict mode the error.

    Args:
        what: could not be measured, and is decided by rule.
        error: why.
    """
    if is_strict():
        raise error
    warnings.warn(
        f"fuser could not measure {what} and decided by rule: {first_sentence(error)} "
        "(set fuser.strict to raise instead)",
        FuserWarning,
        stacklevel=3,
    )


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Generator[None]:
    """Compile and run something, in the middle of a compile, that leaves no trace in it."""
    generators = [device] if device.type == "cuda" else []
    with apart(), torch.random.fork_rng(generators):
        yield


def compare(makers: Mapping[str, Callable[[], Run]], device: torch.device) -> Times:
    """Median times of candidates, which run in turn, so that all see the same clocks.

    Args:
        makers: by name, what makes a candidate (and compiles it, say); one that raises, then or at
            its first run, is left out.
        device: a GPU, on which they run.
    """
    found: Times = {}
    runs: dict[str, Run] = {}
    with _current(device):
        for name, make in makers.items():
            try:
                run = make()
                run()
                finish(device)
                runs[name] = run
            except Exception as error:
                found[name] = error
        return {**found, **medians(runs, device)}


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(runs: Mapping[str, Run], device: torch.device) -> dict[str, float]:
    """Milliseconds of each run on a GPU that is the current one, with an empty cache."""
    cache = torch.empty(FLUSH, dtype=torch.int8, device=device)
    ahead = {name: _writes_ahead(run) for name, run in runs.items()}
    pairs: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(ahead[name]):
                cache.zero_()
            start.record()
            run()
            end.record()
            pairs[name].append((start, end))
    finish(device)
    return {n: statistics.median(s.elapsed_time(e) for s, e in p) for n, p in pairs.items()}


def _writes_ahead(run: Run) -> int:
    """How often the cache is flushed before a run, so that the device never waits for the host.

    A write takes a GPU 50 µs or more.
    """
    start = time.perf_counter()
    run()
    return min(HEADSTART, 1 + math.ceil((time.perf_counter() - start) / 50e-6))


def bucket(size: int) -> int:
    """The power of two from which on a size counts as another one."""
    return 1 << max(0, size - 1).bit_length()


def environment(device: torch.device) -> dict[str, str]:
    """What every measurement depends on: the device and who wrote the kernels."""
    from . import __version__

    return {
        "device": device_name(device),
        "torch": str(torch.__version__),
        "triton": _triton_version(),
        "fuser": __version__,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name."""
    return torch.cuda.get_device_name(device)


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def recall(key: Mapping[str, Any]) -> Any:
    """What was found for a key, in this process or another; None where nothing was.

    Args:
        key: everything that the answer depends on, as JSON.
    """
    text = _text(key)
    if text not in _known:
        found = _read(_path(text), text)
        if found is None:
            return None
        _known[text] = found
    return _known[text]


def remember(key: Mapping[str, Any], found: Any, *, on_disk: bool = True) -> None:
    """Keep what was found for a key.

    Args:
        key: everything that the answer depends on, as JSON.
        found: the answer, as JSON.
        on_disk: for other processes too.
    """
    text = _text(key)
    _known[text] = found
    if on_disk:
        with contextlib.suppress(OSError):  # a folder that cannot be written to costs time alone
            write_whole(_path(text), json.dumps({"key": key, "found": found}, indent=1))


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _path(text: str) -> Path:
    return folder() / "measured" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def _read(path: Path, text: str) -> Any:
    """What a file says of a key; None where there is none, or nobody can read it."""
    try:
        content = json.loads(path.read_text())
        return content["found"] if _text(content["key"]) == text else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
