"""Bytes that generated kernels load and store, counted while Triton's interpreter runs them.

A tensor that all programs read, and that a cache holds, is moved once: what is loaded of it again
counts only where the tensor is large.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from triton.runtime import interpreter


@dataclass
class Traffic:
    """What kernels have moved.

    Attributes:
        cached: tensors of no more bytes than this are read once.
        read, written: bytes by name of the tensor, launch by launch.
    """

    cached: int
    read: list[dict[str, int]] = field(default_factory=list[dict[str, int]])
    written: list[dict[str, int]] = field(default_factory=list[dict[str, int]])
    _extents: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    @property
    def bytes(self) -> int:
        """Of all launches."""
        return sum(sum(moved.values()) for moved in (*self.read, *self.written))

    def launched(self, values: Mapping[str, Any]) -> None:
        """A launch on these arguments begins."""
        tensors = {n: t for n, t in values.items() if isinstance(t, torch.Tensor) and t.numel()}
        self._extents = {n: _extent(t) for n, t in tensors.items()}
        self.read.append({})
        self.written.append({})

    def ended(self) -> None:
        """What a cache holds was not read again."""
        for name, (first, last) in self._extents.items():
            if name in self.read[-1] and last - first <= self.cached:
                self.read[-1][name] = min(self.read[-1][name], last - first)

    def count(self, into: dict[str, int], pointers: Any, mask: Any) -> None:
        """Notes the elements of one access."""
        there = numpy.broadcast_to(mask.data, pointers.data.shape)
        if not there.any():
            return
        at = int(pointers.data[there].min())
        size = pointers.get_element_ty().primitive_bitwidth // 8
        owner = next(n for n, (first, last) in self._extents.items() if first <= at < last)
        into[owner] = into.get(owner, 0) + int(there.sum()) * size


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of its first byte and behind its last one."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.itemsize


@contextmanager
def traffic(launcher: ModuleType, cached: int) -> Generator[Traffic]:
    """Within the block, what the kernels move that a module launches by its `run`."""
    found = Traffic(cached)
    run, builder = launcher.run, interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_run(kernel: Any, grid: Any, values: Any, **more: Any) -> None:
        found.launched(values)
        run(kernel, grid, values, **more)
        found.ended()

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        found.count(found.read[-1], pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        found.count(found.written[-1], pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "run", counted_run)
        patch.setattr(builder, "create_masked_load", counted_load)
        patch.setattr(builder, "create_masked_store", counted_store)
        yield found
