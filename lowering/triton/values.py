"""What generated text computes with: expressions, the dtype eager gives them, literals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .trace import NotPrintable

Number = bool | int | float
HALVES = (torch.float16, torch.bfloat16)
EIGHTHS = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Only stored: as bytes, which nothing computes with."""
_PLAIN = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
_NAMES = {torch.bool: "int1", **{d: str(d).removeprefix("torch.") for d in _PLAIN}}


@dataclass(frozen=True)
class Value:
    """A Triton expression (a name or a literal) and the dtype that eager gives it."""

    text: str
    dtype: torch.dtype

    @property
    def number(self) -> Number | None:
        """The Python number of a literal, None for anything else."""
        if self.text in ("True", "False"):
            return self.text == "True"
        if self.text.startswith('float("'):
            return float(self.text[7:-2])
        if not self.text.lstrip("-")[:1].isdigit():
            return None
        return float(self.text) if self.dtype.is_floating_point else int(self.text)


def fill(text: str, values: Iterable[Value]) -> str:
    """A text with values in place of `{0}`, `{1}`, ..."""
    return text.format(*(value.text for value in values))


def held(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the registers that hold a value: fp32 for half precision."""
    return torch.float32 if dtype in HALVES else dtype


def type_name(dtype: torch.dtype) -> str:
    """Triton's name of a dtype, without `tl.`.

    Raises:
        NotPrintable: complex numbers, 8-bit floats and the like.
    """
    if dtype not in _NAMES:
        raise NotPrintable(f"{dtype} has no place in a generated kernel")
    return _NAMES[dtype]


def literal(number: Number, dtype: torch.dtype) -> Value:
    """A Python number as PyTorch converts it; Triton itself rounds what is not yet fp32."""
    exact = torch.float64 if isinstance(number, float) else torch.int64
    converted = torch.tensor(number, dtype=exact).to(dtype).item()
    if not dtype.is_floating_point:
        return Value(str(converted), dtype)
    if not math.isfinite(converted):
        return Value(f'float("{converted}")', dtype)
    return Value(repr(converted if dtype in HALVES else float(number)), dtype)
