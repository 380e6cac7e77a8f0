"""Attention: the oracle, library kernels, FlexAttention, and any program in chunks on the CPU."""

from . import aten, chunked, flash, flex, generated, reference

__all__ = ["aten", "chunked", "flash", "flex", "generated", "reference"]
