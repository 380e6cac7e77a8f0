"""One thread a test process: tensors this small lose by sharing cores, and xdist fills them."""

from __future__ import annotations

import os

# Before triton is imported: its library is made of interpreted functions from then on.
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
