"""Texts of pointwise kernels: what they read and write becomes an argument when it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .emitter import Emitter, Value
from .frame import Argument, assembled, opening
from .kernel import Kernel
from .source import Source
from .values import HALVES


@dataclass
class PointwiseText(ABC):
    """One kernel that is being written.

    Attributes:
        stage: what it is for, which is its name too.
        about: its docstring.
        layout: what it is specialised on.
        config: how it is cut.
        functions: names of device functions that the text calls.
    """

    stage: str
    about: str
    layout: Any
    config: Any
    write: Source = field(default_factory=Source, kw_only=True)
    functions: set[str] = field(default_factory=set[str], kw_only=True)
    _tensors: dict[str, str] = field(default_factory=dict[str, str], kw_only=True)
    _numbers: dict[str, None] = field(default_factory=dict[str, None], kw_only=True)

    @abstractmethod
    def facts(self) -> list[str]:
        """What the module computes, for its opening."""

    def kernel(self, origin: str) -> Kernel:
        """The finished kernel."""
        return assembled(
            f"{self.stage}_kernel",
            self.about,
            opening(origin, self.facts(), self.functions),
            [Argument(*item) for item in self._tensors.items()],
            [*self._numbers],
            self.write.lines,
            num_warps=self.config.num_warps,
            num_stages=1,
        )

    # -- arguments

    def tensor(self, name: str, kind: str) -> str:
        """A pointer, of a type as Triton writes it."""
        self._tensors.setdefault(name, kind)
        return name

    def number(self, name: str) -> str:
        """A stride or a size."""
        self._numbers.setdefault(name)
        return name

    # -- tiles

    def load_at(self, pointers: str, mask: str, dtype: torch.dtype, into: str) -> Value:
        """A tile, in the registers that hold its dtype; zeros where the mask is false."""
        zero = "0.0" if dtype.is_floating_point else "0"
        given = f", mask={mask}, other={zero}" if mask else ""
        cast = ".to(tl.float32)" if dtype in HALVES else ""
        self.write(f"{into} = tl.load({pointers}{given}){cast}")
        return Value(into, dtype)

    def store_at(self, pointers: str, mask: str, text: str) -> None:
        """Stores a tile."""
        given = f", mask={mask}" if mask else ""
        self.write(f"tl.store({pointers}, {text}{given})")

    # -- programs

    def emitter(self) -> Emitter:
        """One whose names nobody else assigns."""
        return Emitter(self.write, "x")

    @contextmanager
    def emitting(self) -> Generator[Emitter]:
        """An emitter, of whose functions the kernel's head is told."""
        emitter = self.emitter()
        yield emitter
        self.functions |= emitter.functions
