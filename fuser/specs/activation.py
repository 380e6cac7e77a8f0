"""What an activation is, with what is pointwise around it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from ..graph.program import Program
from .names import name_of


@dataclass(frozen=True)
class ActivationSpec:
    """A pointwise program over tensors, or over equal parts of tensors.

        y = program(c_0, c_1, ...)

    Operands: `c_j`, all of one rank. The first dimension counts parts. Where there are several the
    program reads each of them, part p by the name `c{j}_{p}`; else it reads the operand, `c{j}`.
    Along the other dimensions operands broadcast against each other to the shape of y.
    """

    parts: tuple[int, ...]
    """Of each operand."""
    program: Program
    dtype: torch.dtype
    """Of y."""

    def names(self, operand: int) -> list[str]:
        """What the program calls the parts of an operand."""
        count, name = self.parts[operand], f"c{operand}"
        return [name] if count == 1 else [f"{name}_{p}" for p in range(count)]

    @property
    def named(self) -> dict[str, tuple[int, int]]:
        """The operand and the part by name."""
        return {
            name: (operand, part)
            for operand in range(len(self.parts))
            for part, name in enumerate(self.names(operand))
        }

    def to_text(self) -> str:
        fields = {"parts": self.parts, "program": self.program.text, "dtype": name_of(self.dtype)}
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> ActivationSpec:
        data = json.loads(text)
        dtype = getattr(torch, data["dtype"])
        return ActivationSpec(tuple(data["parts"]), Program(data["program"]), dtype)
