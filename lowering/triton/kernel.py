"""A generated kernel: its text, and what is needed to compile it ahead of time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fuser.torch_private import hint

from .source import load

TYPES: dict[torch.dtype, str] = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.bool: "i1", torch.int8: "i8", torch.uint8: "u8", torch.int16: "i16",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
"""Names that Triton has for the dtypes of tensors."""
BYTES: dict[torch.dtype, str] = {torch.float8_e4m3fn: "u8", torch.float8_e5m2: "u8"}
"""Of tensors that are written alone, as bytes."""


class NoKernel(ValueError):
    """Why a region has no generated kernels, in plain words."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a generated module.

    Attributes:
        name: of the function.
        source: text of the module that defines it.
        signature: arguments in order with their types: `*bf16`, `i32`; constants left out.
        constants: constexpr arguments and their values.
        divisible: arguments (pointers, strides, sizes) that are multiples of 16.
        num_warps: warps of a program.
        num_stages: depth of software pipelines.
    """

    name: str
    source: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int | bool | float | None], ...] = ()
    divisible: frozenset[str] = frozenset()
    num_warps: int = 4
    num_stages: int = 2

    def function(self) -> Any:
        """The `JITFunction`, or its interpreted twin under `TRITON_INTERPRET=1`."""
        return getattr(load(self.source), self.name)


@dataclass(frozen=True)
class Numbers:
    """What the JIT would specialise a launch on.

    Attributes:
        ones: numbers that are one, which it makes constants.
        multiples: those that are multiples of 16.
    """

    ones: tuple[str, ...]
    multiples: tuple[str, ...]

    @staticmethod
    def of(values: Mapping[str, Any]) -> Numbers:
        """Those of a launch; of symbols what they are in the example."""
        known = {n: hint(v) for n, v in values.items() if not isinstance(v, torch.Tensor)}
        ones = tuple(n for n, v in known.items() if v == 1)
        return Numbers(ones, tuple(n for n, v in known.items() if v is not None and v % 16 == 0))

    def specialised(self, kernel: Kernel) -> Kernel:
        """What the JIT would compile of a kernel, all pointers of which are multiples of 16."""
        signature = tuple((n, t) for n, t in kernel.signature if n not in self.ones)
        divisible = frozenset(n for n, t in signature if n in self.multiples or t.startswith("*"))
        constants = tuple((n, 1) for n, _ in kernel.signature if n in self.ones)
        return replace(kernel, signature=signature, constants=constants, divisible=divisible)


def require_dtypes(dtypes: Iterable[torch.dtype], *, written: Iterable[torch.dtype] = ()) -> None:
    """Whether kernels that compute in fp32 take tensors of these dtypes, and write the others.

    Raises:
        NoKernel: they do not.
    """
    for dtype in (*dtypes, *(w for w in written if w not in BYTES)):
        if dtype not in TYPES:
            raise NoKernel(f"{str(dtype).removeprefix('torch.')} is no dtype of its kernels")
        if dtype is torch.float64:
            raise NoKernel("its kernels compute in float32, not in float64")


def stored(dtype: torch.dtype) -> torch.dtype:
    """Of what kernels write a tensor of some dtype as, which `Tensor.view` makes that tensor."""
    return torch.uint8 if dtype in BYTES else dtype


def pointer(dtype: torch.dtype) -> str:
    """The Triton type of a pointer to elements of a tensor."""
    return f"*{(TYPES | BYTES)[dtype]}"
