"""Attention: the oracle, library kernels, and any program in chunks on the CPU."""

from . import aten, chunked, flash, reference

__all__ = ["aten", "chunked", "flash", "reference"]
