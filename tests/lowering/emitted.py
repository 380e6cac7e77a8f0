"""Kernels made of what the emitter prints: one launch computes many programs on many points."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, symbolic_trace

from fuser.graph.program import Program, to_json
from fuser.lowering.triton.emitter import Emitter, Value, held
from fuser.lowering.triton.values import type_name

HEADER = """import triton
import triton.language as tl
from fuser.lowering.triton.functions import {functions}


@triton.jit
def kernel({parameters}, N: tl.constexpr):
    at = tl.arange(0, N)
"""


def program(function: Callable[..., Any]) -> Program:
    return Program(to_json(symbolic_trace(function).graph))


@dataclass(frozen=True)
class Job:
    """A graph and the tensor that stands for each of its placeholders.

    Names of tensors: a kernel loads each once. A tensor of one element is a scalar.
    """

    graph: Graph
    inputs: Mapping[str, str]


def source(jobs: Sequence[Job], tensors: Mapping[str, Tensor]) -> tuple[str, list[torch.dtype]]:
    """Text of a kernel with a pointer for each tensor and each result, and the results' dtypes."""
    body: list[str] = []
    functions: set[str] = {"float16"}
    dtypes: list[torch.dtype] = []
    for name, x in tensors.items():
        offset = "" if x.ndim == 0 else " + at"
        body.append(f"{name} = tl.load({name}_ptr{offset}).to(tl.{type_name(held(x.dtype))})")
    for number, job in enumerate(jobs):
        emitter = Emitter(body.append, f"j{number}_")
        given = {k: Value(name, tensors[name].dtype) for k, name in job.inputs.items()}
        for value in emitter.run(job.graph, given):
            text = f"tl.full([N], {value.text}, tl.{type_name(held(value.dtype))})"
            text = value.text if value.number is None else text
            kind = type_name(torch.uint8 if value.dtype is torch.bool else value.dtype)
            body.append(f"tl.store(out{len(dtypes)} + at, ({text}).to(tl.{kind}))")
            dtypes.append(value.dtype)
        functions |= emitter.functions
    names = [*(f"{name}_ptr" for name in tensors), *(f"out{i}" for i in range(len(dtypes)))]
    header = HEADER.format(functions=", ".join(sorted(functions)), parameters=", ".join(names))
    return header + "".join(f"    {line}\n" for line in body), dtypes


def load(text: str, folder: Path) -> Any:
    """The kernel of a source text, from a file, as Triton reads the text again."""
    path = folder / f"kernel_{abs(hash(text))}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.kernel


def run(jobs: Sequence[Job], tensors: Mapping[str, Tensor], folder: Path) -> list[Tensor]:
    """Results of all jobs, one after the other; tiles are 1-d of one size, a power of two."""
    size = max(x.numel() for x in tensors.values())
    text, dtypes = source(jobs, tensors)
    stored = [torch.uint8 if d is torch.bool else d for d in dtypes]
    results = [torch.zeros(size, dtype=dtype) for dtype in stored]
    with np.errstate(all="ignore"):
        load(text, folder)[(1,)](*tensors.values(), *results, N=size)
    return [r.to(d) for r, d in zip(results, dtypes, strict=True)]
