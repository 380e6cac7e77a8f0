"""Kernels of regions, generated and compiled ahead of time for a device that need not be there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from ..kernels import Entry, Survey, survey
from ..lowering.activation.generated import catalogue as activation
from ..lowering.attention.generated import catalogue as attention
from ..lowering.attention.positions import absorb
from ..lowering.base import Context
from .parts import Parts, Region


def compiled_ahead(regions: Sequence[tuple[Region, Parts]], arch: str) -> Survey:
    raise NotImplementedError
