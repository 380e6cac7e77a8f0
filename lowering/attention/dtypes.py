"""Where a region rounds its intermediate values."""

from __future__ import annotations

import torch

from fuser.graph.program import Program


def narrower(a: torch.dtype, b: torch.dtype) -> bool:
    """Whether a is a floating dtype with fewer bits than b."""
    return a.is_floating_point and b.is_floating_point and a.itemsize < b.itemsize


def rounds_coarsely(program: Program, dtype: torch.dtype) -> bool:
    """Whether a program rounds to fewer bits than its region's result has."""
    return any(
        node.target == "to" and narrower(node.kwargs["dtype"], dtype)
        for node in program.graph.nodes
    )


def widened(dtype: torch.dtype) -> bool:
    """Whether values of a dtype are computed with in fp32: those of half precision."""
    return dtype in (torch.float16, torch.bfloat16)
