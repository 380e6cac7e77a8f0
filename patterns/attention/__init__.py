"""Attention: structural softmax attention, native SDPA calls, one-node composites."""

from . import composite, sdpa, softmax

__all__ = ["composite", "sdpa", "softmax"]
