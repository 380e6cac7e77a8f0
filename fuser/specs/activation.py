"""What an activation is, with what is pointwise around it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..graph.derivative import read_by_gradient
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

    def read_by_gradient(self, wanted: Collection[int]) -> frozenset[int]:
        """The operands that gradients of the `wanted` ones are computed from, or may be: of a sum,
        none."""
        return _read_by_gradient(self, frozenset(wanted))

    def to_text(self) -> str:
        fields = {"parts": self.parts, "program": self.program.text, "dtype": name_of(self.dtype)}
        return json.dumps(fields, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> ActivationSpec:
        data = json.loads(text)
        dtype = getattr(torch, data["dtype"])
        return ActivationSpec(tuple(data["parts"]), Program(data["program"]), dtype)


@lru_cache(maxsize=1024)
def _read_by_gradient(spec: ActivationSpec, wanted: frozenset[int]) -> frozenset[int]:
    named = {name: operand for name, (operand, _) in spec.named.items()}
    read = read_by_gradient(spec.program, [n for n, operand in named.items() if operand in wanted])
    return frozenset(named[name] for name in read)
