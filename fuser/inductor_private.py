"""Private APIs of Inductor: the order of tensors in memory, and its caches."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
from torch._inductor import config
from torch._ops import OpOverload
from torch.fx import Node


def fresh_cache() -> contextlib.AbstractContextManager[None]:
    """Within the block, nothing that was compiled before is found on disk or in memory."""
    from torch._inductor import utils

    return utils.fresh_cache()


def keeps_channels_last() -> bool:
    """Whether Inductor keeps images with channels last, on a CPU, in a graph with convolutions,
    in whatever order they were captured."""
    return config.layout_optimization and torch.backends.mkldnn.is_available()


@lru_cache
def follows_channels_last(function: OpOverload, images: tuple[int, ...]) -> None:
    """Make Inductor give an operator its images in the order in which it keeps those of a graph.

    An operator gets what it reads as it was captured; where Inductor has put channels last in
    between, that is a copy before the operator and another one after it.

    Args:
        function: takes images in either order, and gives results in that of the first.
        images: positions of its arguments that are images.
    """
    from torch._inductor.ir import ExternKernel
    from torch._inductor.lowering import constrain_to_fx_strides, make_fallback
    from torch._inductor.virtualized import V

    def constraint(node: Node, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        given = list(args)
        if not V.graph.layout_opt or any(len(given[i].get_size()) != 4 for i in images):
            return constrain_to_fx_strides(node, *args, **kwargs)
        for i in images:
            given[i] = ExternKernel.require_channels_last(given[i])
        return tuple(given), kwargs

    make_fallback(function, layout_constraint=constraint, warn=False)
