"""Normalisations, with what is pointwise around them; rotations of pairs; quantisations."""

from . import chain, quantised, rotation

__all__ = ["chain", "quantised", "rotation"]
