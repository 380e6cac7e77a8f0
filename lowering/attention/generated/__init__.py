"""Attention kernels that are generated: one template, the programs of a spec printed into it.

layout      what the text of a kernel depends on
tile        what every kernel computes of one tile of scores; `memory`, how it loads and stores
forward     online softmax; `combine` adds up its parts where the keys are split
backward    gradients, everything of a tile recomputed
bounds      which tiles are visited, and which of them need no mask; `block_table`, by data
config      how a kernel is cut
build       from a layout to kernels
problem     an attention with its operands, and launches; `run_forward` and `run_backward`
operator    `fuser::generated_attention`
lowering    the lowering that puts it there
"""

import importlib.util

from . import lowering

if importlib.util.find_spec("triton") is not None:
    from . import operator as operator  # registers it; torch logs a warning where triton is missing

__all__ = ["lowering"]
