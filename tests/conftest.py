"""What holds for every test: threads, the interpreter, and a record of the kernels launched.

One thread a test process: tensors this small lose by sharing cores, and xdist fills them.

`FUSER_CATALOGUE=FILE` has the kernels that the tests launch added to a file, for
`python -m fuser kernels FILE` to compile for GPUs. Processes that tests start are not seen.
"""

from __future__ import annotations

import os

# Before triton is imported: its library is made of interpreted functions from then on.
os.environ.setdefault("TRITON_INTERPRET", "1")

import contextlib
import fcntl
from collections.abc import Iterable, Iterator

import pytest
import torch

CATALOGUE = pytest.StashKey[contextlib.ExitStack]()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Records from here on, in every process of xdist, if that is wanted."""
    path = os.environ.get("FUSER_CATALOGUE")
    if path:
        from fuser.lowering.attention.generated.catalogue import recording

        stack = session.stash[CATALOGUE] = contextlib.ExitStack()
        found = stack.enter_context(recording())
        stack.callback(_add_lines, path, found)


def pytest_collection_finish() -> None:
    """What asks the tests for something looks to `fuser` like an option that is misspelt."""
    for name in ("FUSER_CATALOGUE", "FUSER_EVERY"):
        os.environ.pop(name, None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if CATALOGUE in session.stash:
        session.stash[CATALOGUE].close()


def _add_lines(path: str, lines: Iterable[str]) -> None:
    """Adds those that the file lacks, one process at a time."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known = set(file.read().splitlines())
        file.writelines(f"{line}\n" for line in lines if line not in known)
