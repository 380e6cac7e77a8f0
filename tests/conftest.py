"""What holds for every test: threads, the interpreter, and a record of the kernels launched.

One thread a test process: tensors this small lose by sharing cores, and xdist fills them.

`FUSER_CATALOGUE=FILE` has the kernels that the tests launch added to a file, for
`python -m fuser kernels FILE` to compile for GPUs. Processes that tests start are not seen.

`FUSER_DEVICE=cuda` has the generated kernels run there, by the tests that compare their numbers:
`FUSER_DEVICE=cuda pytest tests/gpu tests/lowering/test_generated.py`.
"""

from __future__ import annotations

import os

# Before triton is imported: its library is made of interpreted functions from then on.
if os.environ.get("FUSER_DEVICE", "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import contextlib
import fcntl
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.interpreter import hasten

    hasten()


class Recorder:
    """Adds the kernels of each test to a file, so that a run that is cut short leaves some."""

    def __init__(self, path: str) -> None:
        from fuser.lowering.activation.generated import catalogue as activation
        from fuser.lowering.attention.generated import catalogue as attention
        from fuser.lowering.moe.generated import catalogue as moe
        from fuser.lowering.norm.generated import catalogue as norm

        self._path, self._added = path, set[str]()
        self._stack = contextlib.ExitStack()
        kinds = (activation, attention, moe, norm)
        self._found = [self._stack.enter_context(kind.recording()) for kind in kinds]

    def add(self) -> None:
        """Adds what the file lacks, one process at a time."""
        new = [line for found in self._found for line in found if line not in self._added]
        if not new:
            return
        self._added.update(new)
        with open(self._path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = set(file.read().splitlines())
            file.writelines(f"{line}\n" for line in new if line not in known)

    def close(self) -> None:
        self._stack.close()


RECORDER = pytest.StashKey[Recorder]()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_sessionstart(session: pytest.Session) -> None:
    """From here on, in every process of xdist, our bugs are raised; kernels are recorded where that
    is wanted."""
    from fuser import swallowed

    swallowed.raise_ours = True
    path = os.environ.get("FUSER_CATALOGUE")
    if path:
        session.stash[RECORDER] = Recorder(path)


def pytest_collection_finish() -> None:
    """What asks the tests for something looks to `fuser` like an option that is misspelt."""
    for name in ("FUSER_CATALOGUE", "FUSER_DEVICE", "FUSER_EVERY"):
        os.environ.pop(name, None)


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if RECORDER in item.session.stash:
        item.session.stash[RECORDER].add()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if RECORDER in session.stash:
        session.stash[RECORDER].close()
