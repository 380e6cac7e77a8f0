"""Many kernels compiled side by side, each in a process that has nothing to do with this one.

A worker starts without the variables that would change what is compiled: once triton has been
imported under `TRITON_INTERPRET=1`, as torch itself does, no process can compile any more. And a
compiler that crashes takes with it one worker, not the program: the next kernel gets another.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from queue import Empty, SimpleQueue

from fuser.errors import TritonMissingError

from .aot import Failure, Resources
from .devices import device
from .kernel import Kernel

CLEARED = ("TRITON_INTERPRET", "TRITON_OVERRIDE_ARCH", "TRITON_STORE_BINARY_ONLY")
"""Variables without which workers start: they would compile nothing, for another architecture, or
keep no text to read spills from."""


def compile_all(
    tasks: Sequence[tuple[Kernel, str]],
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Resources | Failure]:
    """Compiles kernels in worker processes; triton keeps the results in its cache as ever.

    Args:
        tasks: kernels, each with one of `devices.DEVICES`.
        jobs: workers at a time; as many as there are cores if None.
        progress: called with the number of tasks done and their total, after each.

    Returns:
        what became of each task, in their order.

    Raises:
        UnknownArchitectureError: a task names none of the devices.
        TritonMissingError: triton is not installed.
    """
    for arch in dict.fromkeys(arch for _, arch in tasks):
        device(arch)
    if importlib.util.find_spec("triton") is None:
        raise TritonMissingError
    pool = _Pool()
    threads = ThreadPoolExecutor(min(jobs or _cores(), len(tasks)) or 1)
    futures = [threads.submit(pool.compile, kernel, arch) for kernel, arch in tasks]
    try:
        for done, _ in enumerate(as_completed(futures), 1):
            if progress is not None:
                progress(done, len(tasks))
        return [future.result() for future in futures]
    finally:  # early, if the user interrupts
        threads.shutdown(wait=False, cancel_futures=True)
        pool.close()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


class _Pool:
    """As many workers as are asked for at the same time."""

    def __init__(self) -> None:
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        self._all: list[_Worker] = []

    def compile(self, kernel: Kernel, arch: str) -> Resources | Failure:
        worker = self._worker()
        found = worker.compile(kernel, arch)
        if worker.alive:
            self._idle.put(worker)
        return found

    def _worker(self) -> _Worker:
        with contextlib.suppress(Empty):
            return self._idle.get_nowait()
        worker = _Worker()
        self._all.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._all:
            worker.close()


class _Worker:
    """One process, and what its compilers complain of."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuser.lowering.triton.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def compile(self, kernel: Kernel, arch: str) -> Resources | Failure:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((kernel, arch), self._process.stdin)
            self._process.stdin.flush()
            found: Resources | Failure = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self._process.kill()
            code = self._process.wait()
            found = Failure(kernel.name, arch, f"the compiling process ended with {code}")
        complaints = self._complaints()
        if isinstance(found, Failure) and complaints:
            return replace(found, message=f"{found.message}\n{complaints}")
        return found

    def _complaints(self) -> str:
        """What the process wrote of errors since the last time."""
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        self._log.seek(0)  # for the process too: they share the position
        self._log.truncate()
        lines = [x for x in text.splitlines() if re.search(r"[Ee]rror|ERROR|Assertion", x)]
        return "\n".join(dict.fromkeys(lines[:5] + lines[-1:]))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


def _environment() -> dict[str, str]:
    """This process's, so that the same `fuser` is found, and compiles for the right device."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    path = os.pathsep.join(x or os.getcwd() for x in sys.path)
    return {**kept, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
