"""Operators that are called often, and do little each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def operator(
    name: str, run: Callable[..., Any], fake: Callable[..., Any], schema: str | None = None
) -> Any:
    """Makes `fuser::name`, of which no result shares memory with an operand.

    A call takes 20 to 40 microseconds less than one of `torch.library.custom_op`, which asks each
    time whether that is so.

    Args:
        name: of the operator.
        run: computes it, on any device.
        fake: results without numbers.
        schema: arguments and results; of `run`'s annotations, where it is not given.

    Returns:
        what to call.
    """
    full = f"fuser::{name}"
    schema = schema or torch.library.infer_schema(run, mutates_args=())
    torch.library.define(full, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(full, "CompositeExplicitAutograd", run)
    torch.library.register_fake(full, fake)
    return getattr(torch.ops.fuser, name).default
