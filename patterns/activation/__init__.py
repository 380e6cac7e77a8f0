"""Activations, gated or plain, with what is pointwise around them.

chain    the patterns
anchors  where a region may begin
growth   how far it reaches
region   the program of a region, and its operands
"""

from . import chain

__all__ = ["chain"]
