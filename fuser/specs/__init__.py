"""Specs: the contract between what a pattern found and what a lowering puts there.

A spec says *what* is computed, on operands in a canonical arrangement, and nothing about where
they came from. It is frozen, hashable and has a text form, which is the string argument of the
operator that carries it; a compiled artifact needs nothing else.
"""

from __future__ import annotations

from .activation import ActivationSpec
from .attention import AttentionSpec
from .loss import LinearCrossEntropySpec, Reduction
from .moe import TOKEN, Columns, MoeSpec
from .norm import NormSpec
from .router import Groups, RouterSpec

__all__ = [
    "TOKEN",
    "ActivationSpec",
    "AttentionSpec",
    "Columns",
    "Groups",
    "LinearCrossEntropySpec",
    "MoeSpec",
    "NormSpec",
    "Reduction",
    "RouterSpec",
]
