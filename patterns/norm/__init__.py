"""Normalisations, with what is pointwise around them, and rotations of pairs."""

from . import chain, rotation

__all__ = ["chain", "rotation"]
