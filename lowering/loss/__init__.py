"""Losses: the operators that a match becomes.

problem     operands of a linear layer's cross-entropy, and what the spec says of its rows
sweep       the rows in chunks, so that no more logits exist than those of one
operators   the loss, its gradients, and how they are put into a graph
reference   all logits at once, in the original order: the oracle
"""

from . import operators, reference  # register their lowerings

__all__ = ["operators", "reference"]
