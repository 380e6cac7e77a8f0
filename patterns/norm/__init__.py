"""Normalisations, with what is pointwise around them."""

from . import chain

__all__ = ["chain"]
