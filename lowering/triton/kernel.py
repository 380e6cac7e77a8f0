"""A generated kernel: its text, and what is needed to compile it ahead of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .source import load

TYPES: dict[torch.dtype, str] = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.bool: "i1", torch.int8: "i8", torch.uint8: "u8", torch.int16: "i16",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
"""Names that Triton has for the dtypes of tensors."""


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


def pointer(dtype: torch.dtype) -> str:
    """The Triton type of a pointer to elements of a tensor."""
    return f"*{TYPES[dtype]}"
