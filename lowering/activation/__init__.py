"""Lowerings of activations and what is pointwise around them."""

from . import generated, reference

__all__ = ["generated", "reference"]
