"""Losses.

linear      the pattern: the cross-entropy of a linear layer's rows
terms       a loss as a sum of terms: what a target's logit counts, and what logsumexp does
leaves      the operators of which such terms are made
logits      from logits to the product with the matrix
"""

from . import linear  # registers its pattern

__all__ = ["linear"]
