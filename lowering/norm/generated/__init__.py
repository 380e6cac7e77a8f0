"""Norms, with what is pointwise around them, by generated Triton kernels.

    whole         rows that a tile has all of: statistics and results in one pass
    long          rows that one program reads twice, tile by tile
    part, apply   rows that several programs share: statistics of parts, then results

and, with the same names, their gradients.

layout        what a kernel is specialised on
config        how it is cut
text          the frame that the kernels share
forward, backward    their text, and `build` for all of them
problem       one norm with its operands
launching, run    its kernels, one and all
operator      `fuser::generated_norm`
catalogue     kernels by description, to be compiled ahead of time
workloads     those that are always compiled
lowering      when it is chosen
"""

from . import lowering, operator  # register themselves

__all__ = ["lowering", "operator"]
