"""Triton source text from pointwise programs, and generated modules of kernels.

- `trace.py`: a program, or its derivative, as a graph of ATen pointwise operators.
- `emitter.py`: such a graph as lines of Triton, one assignment a node.
- `pointwise.py`, `arithmetic.py`: what each operator is in Triton; `values.py`: expressions,
  the dtypes they stand for, literals.
- `functions/`: `@triton.jit` functions for what `triton.language` lacks; imported by generated
  code only, so that nothing else here needs triton.
- `source.py`, `kernel.py`: text of a module on its way to a file and to a compiled kernel.
- `space.py`: the dimensions in which kernels count.
- `aot.py`, `devices.py`: a kernel compiled with no GPU present, and what it leaves of one.
- `pool.py`, `worker.py`: many of them, in processes that may crash.
"""
