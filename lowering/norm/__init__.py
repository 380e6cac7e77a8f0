"""Lowerings of normalisations and what is pointwise around them."""

from . import library, reference

__all__ = ["library", "reference"]
