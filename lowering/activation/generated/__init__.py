"""Activations, with what is pointwise around them, by generated Triton kernels.

    forward     a tile of the result
    backward    the same tile of every gradient; of operands that are broadcast, sums

layout        what a kernel is specialised on
config        how it is cut
text          the frame that both share
kernels       their text, and `build` for both
problem       launching them
operator      `fuser::generated_activation`
catalogue     kernels by description, to be compiled ahead of time
workloads     those that are always compiled
lowering      when it is chosen
"""

from . import lowering, operator  # register themselves

__all__ = ["lowering", "operator"]
