"""One thread a test process: tensors this small lose by sharing cores, and xdist fills them."""

from __future__ import annotations

import os

# Before triton is imported: its library is made of interpreted functions from then on.
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
