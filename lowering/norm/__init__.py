"""Lowerings of normalisations and what is pointwise around them."""

from . import reference

__all__ = ["reference"]
