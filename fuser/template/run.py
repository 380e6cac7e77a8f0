"""Run one recorded node on values; shapes may be symbolic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def run(node: Node, args: Any, kwargs: Any) -> Any:
    """What a node gives; `math.sqrt` of a symbolic size stays symbolic instead of fixing it."""
    target: Any = node.target
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    if any(isinstance(a, SYMBOLIC) for a in args) and target in vars(math).values():
        symbolic = getattr(torch, f"sym_{target.__name__}", None)
        if symbolic is None:
            raise TypeError(f"math.{target.__name__} of a symbolic size")
        target = symbolic
    return target(*args, **kwargs)
