"""Kernels made of what the emitter prints: one launch computes many programs on many points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph

from fuser.lowering.triton.emitter import Emitter, Value, held
from fuser.lowering.triton.kernel import pointer
from fuser.lowering.triton.source import load
from fuser.lowering.triton.trace import Input
from fuser.lowering.triton.values import EIGHTHS, type_name

IMPORTS = """import triton
import triton.language as tl
from fuser.lowering.triton.functions import {functions}


"""
HEAD = """@triton.jit
def kernel({parameters}, N: tl.constexpr):
    at = tl.arange(0, N)
"""


@dataclass(frozen=True)
class Job:
    """A graph of `trace`, and the operand that stands for each of its placeholders.

    An operand is the name of a tensor, or a literal.
    """

    graph: Graph
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Text:
    """A kernel: its source, the types of its arguments, the dtypes of what it computes."""

    source: str
    signature: dict[str, str]
    made: list[torch.dtype]

    @property
    def function(self) -> Any:
        return load(self.source).kernel


def text(jobs: Sequence[Job], dtypes: Mapping[str, torch.dtype], scalars: Sequence[str]) -> Text:
    """A kernel with a pointer for each operand and each result, loads and stores around the jobs.

    Memory holds values as the emitter does: the interpreter's own casts to bfloat16 truncate.
    """
    body: list[str] = []
    functions: set[str] = {"float16"}
    made: list[torch.dtype] = []
    for name, dtype in dtypes.items():
        place = "" if name in scalars else " + at"
        body.append(f"{name} = tl.load({name}_ptr{place}).to(tl.{type_name(held(dtype))})")
    for number, job in enumerate(jobs):
        emitter = Emitter(body.append, f"j{number}_")
        for value in emitter.run(job.graph, operands(job)):
            body.append(f"tl.store(out{len(made)} + at, {tile(value, '[N]')})")
            made.append(value.dtype)
        functions |= emitter.functions
    pointers = {f"{name}_ptr": pointer(held(dtype)) for name, dtype in dtypes.items()}
    pointers |= {f"out{i}": pointer(stored(dtype)) for i, dtype in enumerate(made)}
    source = IMPORTS.format(functions=", ".join(sorted(functions)))
    source += HEAD.format(parameters=", ".join(pointers))
    source += "".join(f"    {line}\n" for line in body)
    return Text(source, {**pointers, "N": "constexpr"}, made)


def operands(job: Job) -> dict[str, Value]:
    """The value of each placeholder."""
    placeholders = [n for n in job.graph.nodes if n.op == "placeholder"]
    return {n.target: Value(job.inputs[n.target], n.meta["val"].dtype) for n in placeholders}


def tile(value: Value, shape: str) -> str:
    """What can be stored: a literal fills the shape."""
    if value.number is None:
        return value.text
    return f"tl.full({shape}, {value.text}, tl.{type_name(held(value.dtype))})"


def described(tensors: Mapping[str, Tensor]) -> dict[str, Input]:
    """What `trace` has to know of tensors."""
    return {n: Input(t.dtype, t.ndim == 0) for n, t in tensors.items()}


def run(jobs: Sequence[Job], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Results of all jobs, one after the other; tiles are 1-d of one size, a power of two."""
    size = max(x.numel() for x in tensors.values())
    scalars = [name for name, x in tensors.items() if x.ndim == 0]
    kernel = text(jobs, {name: x.dtype for name, x in tensors.items()}, scalars)
    given = [x.to(held(x.dtype)) for x in tensors.values()]
    results = [torch.zeros(size, dtype=stored(dtype)) for dtype in kernel.made]
    with np.errstate(all="ignore"):
        kernel.function[(1,)](*given, *results, N=size)
    return [rounded(r, dtype) for r, dtype in zip(results, kernel.made, strict=True)]


def stored(dtype: torch.dtype) -> torch.dtype:
    """In which results lie in memory: of eight bits as bytes."""
    return torch.uint8 if dtype in EIGHTHS else held(dtype)


def rounded(result: Tensor, dtype: torch.dtype) -> Tensor:
    """A result in its dtype, which must hold it exactly."""
    if dtype in EIGHTHS:
        return result.view(dtype)
    narrow = result.to(dtype)
    torch.testing.assert_close(narrow.to(result.dtype), result, rtol=0, atol=0, equal_nan=True)
    return narrow
