"""Attention: structural softmax attention, native SDPA calls, one-node composites."""

from . import softmax

__all__ = ["softmax"]
