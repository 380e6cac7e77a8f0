"""Mixtures of experts by generated Triton kernels.

Choices are sorted by expert on the device, so that nobody waits for the host:

    sort      order[place] = choice t * K + k, ends[e] = the place after the last one of expert e
    up        hidden[place] = activation(x[token of place] M_pᵀ + b_p)
    down      y[choice] = weight * (hidden Mᵀ + b)            out[t] = Σ_k y[t, k]

and backward, from what `up` left of the first products:

    hidden    gradients of the first products, the hidden columns again, and the weights' gradient
    tokens    dx[choice] = dh M_p                              dx[t] = Σ_k dx[t, k]
    matrix    dM = Σ over the places of an expert              bias  the same for what is added

layout        what a kernel is specialised on
config        how it is cut
text          the frame that the kernels share
sort, forward, backward    their text, and `build` for all of them
problem, run  launching them, one and all
operator      `fuser::generated_moe`
catalogue     kernels by description, to be compiled ahead of time
lowering      when it is chosen
"""

from . import lowering, operator  # register themselves

__all__ = ["lowering", "operator"]
