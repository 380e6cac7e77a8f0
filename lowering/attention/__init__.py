"""Attention: the oracle, library kernels on the CPU, FlexAttention."""

from . import aten, flash, reference

__all__ = ["aten", "flash", "reference"]
