"""Compiles every pointwise operator for GPUs, with none present; run as a process of its own.

The interpreter accepts what Triton's compiler does not, and cannot be left once it is chosen.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fuser.graph.program import Program
from fuser.lowering.triton.trace import Input, trace, trace_gradient
from tests.lowering.emitted import Job, text
from tests.lowering.pointwise_cases import MIXED, ONE, TWO, program, result_dtype

NVIDIA, AMD = GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)
GRADS = {
    "g16": torch.float16,
    "gb16": torch.bfloat16,
    "g32": torch.float32,
    "g64": torch.float64,
}


def jobs(dtypes: Mapping[str, torch.dtype]) -> list[Job]:
    """Every program and every derivative that there is."""
    found: list[Job] = []
    for function in {**ONE, **TWO, **MIXED}.values():
        p = program(function)
        names = [str(n.target) for n in p.graph.nodes if n.op == "placeholder"]
        inputs = {n: Input(dtypes[n], n == "c") for n in names}
        found.append(Job(trace(p, inputs), {n: n for n in names}))
        found += derivative(p, inputs)
    return found


def derivative(p: Program, inputs: Mapping[str, Input]) -> list[Job]:
    wrt = [n for n, i in inputs.items() if i.dtype.is_floating_point]
    grads = [name for name, dtype in GRADS.items() if dtype == result_dtype(trace(p, inputs))]
    if not grads or not wrt:
        return []
    try:
        graph = trace_gradient(p, inputs, wrt)
    except RuntimeError:  # "derivative for aten::floor_divide is not implemented"
        return []
    return [Job(graph, {**{n: n for n in inputs}, "grad": grads[0]})]


def compile_all(
    target: GPUTarget, dtype: torch.dtype, scalars: tuple[str, ...], numbers: Mapping[str, str]
) -> None:
    """One kernel of all jobs, in which some operands are scalars and some literals."""
    dtypes = {"x": dtype, "y": dtype, "c": torch.float64, "d": torch.float64}
    dtypes |= {"b": torch.bool, "i": torch.int64, "j": torch.int32, **GRADS}
    made = [
        Job(job.graph, {k: numbers.get(n, n) for k, n in job.inputs.items()})
        for job in jobs(dtypes)
    ]
    kernel = text(made, dtypes, scalars)
    source = ASTSource(kernel.function, kernel.signature, constexprs={"N": 128})
    binary = triton.compile(source, target=target)
    print(target.backend, dtype, len(kernel.made), *binary.asm, flush=True)


if __name__ == "__main__":
    literals = {"y": "-0.5", "c": "0.3", "b": "True", "j": "3"}
    compile_all(NVIDIA, torch.float32, ("c",), {})
    compile_all(AMD, torch.bfloat16, ("c", "x", "j"), literals)
    if "--all" in sys.argv:
        for target in (NVIDIA, AMD):
            compile_all(target, torch.float32, ("c", "y", "b"), {})
            compile_all(target, torch.bfloat16, ("c",), {})
            compile_all(target, torch.float16, ("c", "x", "j"), literals)
            compile_all(target, torch.float64, ("c",), {"x": "0.25"})
