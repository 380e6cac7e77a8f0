"""Compile with the reference lowering on calls that were absorbed, and keep what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fuser.graph.ops import value
from fuser.lowering import Context
from fuser.lowering.attention.positions import absorb
from fuser.lowering.attention.reference import Reference
from fuser.lowering.base import Emission, Refusal
from fuser.pattern import Call, Operand
from fuser.specs import AttentionSpec
from tests.compiled import Run, assert_near, compiled, run, wide

REFERENCE = {"fuser.lowering": "reference"}
B, H, S, D = 2, 3, 12, 8
Fn = Callable[..., Any]


@dataclass(frozen=True)
class Absorbed:
    """One attention before and after.

    Attributes:
        captured: names and shapes of the tensors that it reads now, at the time of compiling.
    """

    before: AttentionSpec
    spec: AttentionSpec
    captured: tuple[tuple[str, tuple[Any, ...]], ...]
    same: bool

    @property
    def mask(self) -> str:
        return "" if self.spec.mask is None else str(self.spec.mask)

    @property
    def score(self) -> str:
        return str(self.spec.score)

    @property
    def shapes(self) -> list[tuple[Any, ...]]:
        return [shape for _, shape in self.captured]


@contextmanager
def absorbing() -> Iterator[list[Absorbed]]:
    """Within the block, the reference absorbs what it can; gives the list of what it did."""
    found: list[Absorbed] = []
    original = Reference.prepare

    def prepare(self: Reference, call: Call, context: Context) -> Emission | Refusal:
        new = absorb(call, context.folder)
        found.append(_described(call, new))
        return original(self, new, context)

    with mock.patch.object(Reference, "prepare", prepare):
        yield found


def absorbed(
    fn: Callable[..., Any], args: Sequence[Any], *, grad: bool = False, dynamic: bool | None = None
) -> tuple[Run, list[Absorbed]]:
    """Run a function so, and tell."""
    with absorbing() as found:
        ours = compiled(fn, args, grad=grad, dynamic=dynamic, **REFERENCE)
    assert ours.record.failures == []
    return ours, found


def _described(before: Call, after: Call) -> Absorbed:
    names = [f"c{i}" for i in range(after.spec.captured)]
    assert {n for n in after.operands if n[0] == "c"} == set(names)
    captured = tuple((after.operands[n].node.name, _shape(after.operands[n])) for n in names)
    return Absorbed(before.spec, after.spec, captured, after is before)


def _shape(operand: Operand) -> tuple[Any, ...]:
    example = value(operand.node)
    return tuple(example.shape) if isinstance(example, Tensor) else ()


def elements(shape: tuple[Any, ...]) -> int:
    """Of a shape; a symbolic size counts as in the example."""
    sizes = [s.node.hint if isinstance(s, torch.SymInt) else s for s in shape]
    return int(torch.Size(sizes).numel())


def qkv(dtype: torch.dtype = torch.float32, *, grad: bool = False) -> list[Tensor]:
    """(B, H, S, D) queries, keys and values."""
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(B, H, S, D, generator=generator).to(dtype) for _ in range(3)]
    return [x.requires_grad_(grad) for x in made]


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """Scaled products."""
    return q @ k.mT * D**-0.5


def positions_of(like: Tensor) -> tuple[Tensor, Tensor]:
    """Of queries as a column, of keys as a row."""
    positions = torch.arange(like.shape[-2], device=like.device)
    return positions[:, None], positions[None]


def check(fn: Fn, args: Sequence[Tensor], *, grad: bool = False) -> Absorbed:
    """Numbers as eager's; each run has inputs of its own, since some are written to."""
    ours, found = absorbed(fn, _copies(args), grad=grad)
    eager = run(fn, _copies(args), grad=grad)
    exact = run(fn, wide(_copies(args)), grad=grad)
    assert_near(ours, eager, exact)
    assert len(found) == 1
    return found[0]


def _copies(args: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone().requires_grad_(x.requires_grad) for x in args]
