"""Triton source text from pointwise programs.

- `trace.py`: a program, or its derivative, as a graph of ATen pointwise operators.
- `emitter.py`: such a graph as lines of Triton, one assignment a node.
- `pointwise.py`: the table of operators: what each is in Triton.
- `functions.py`: `@triton.jit` functions for what `triton.language` lacks; imported by generated
  code only, so that nothing here needs triton.
"""
