"""Attention: structural softmax attention, native SDPA calls, one-node composites."""

from . import sdpa, softmax

__all__ = ["sdpa", "softmax"]
