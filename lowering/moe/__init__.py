"""Mixture of experts: the operators that a match becomes.

experts     one expert on rows of tokens, in plain PyTorch
operators   what all of them share: schemas, gradients, emission
reference   expert by expert, as it is written down most often: the oracle
grouped     tokens sorted by expert, so that each expert is a few products
library     the same, each product one grouped product of PyTorch's
generated   Triton kernels
router      what chooses the experts and weighs them, an operator of its own
cost        which of them is expected to be the fastest on a GPU
"""

from . import generated, grouped, library, reference, router  # registers their lowerings

__all__ = ["generated", "grouped", "library", "reference", "router"]
