"""Lowerings of normalisations and what is pointwise around them."""

from . import generated, library, reference

__all__ = ["generated", "library", "reference"]
