"""Where the loss in chunks is expected to be no slower than what the inner backend makes of it.

It gains what logits in memory cost, and on a CPU memory of that size is mapped anew, page by page,
in every step. The products are the same, in smaller pieces; docs/decisions.md has the measurements.
"""

from __future__ import annotations

import torch

from fuser.pattern import Call
from fuser.specs import LinearCrossEntropySpec, Reduction
from fuser.torch_private import multiplies_in_hardware

from ..base import Context, size
from .problem import is_cast

MAPPED = 32 << 20
"""Bytes from which glibc's malloc maps memory anew at every allocation."""
UNMEASURED = "nothing has been measured on this kind of device"
AGAIN = "the backward would compute all logits again"
READ_ONCE = "this CPU multiplies {}, and without a gradient the inner backend reads a logit once"


def is_ahead(spec: LinearCrossEntropySpec) -> bool:
    """Whether gradients can be computed with the loss: it has one gradient itself, and they hold
    what is to be multiplied with it. In fp16 small ones would be zero by then, which a scaled loss
    is there to prevent."""
    return spec.reduction is not Reduction.NONE and spec.product_dtype is not torch.float16


def slower(call: Call, context: Context) -> str:
    """Why the inner backend is expected to be at least as fast, in plain words; else empty."""
    spec: LinearCrossEntropySpec = call.spec
    if context.device.type != "cpu":
        return UNMEASURED
    if context.training and not is_ahead(spec):
        return AGAIN
    if not context.training and is_cast(spec.after) and _is_cheap(spec.product_dtype):
        return READ_ONCE.format(str(spec.product_dtype).removeprefix("torch."))
    rows, classes = size(call, "x", 0), size(call, "weight", 0)
    if rows is None or classes is None:
        return "how many logits there are is not known"
    total = rows * classes * spec.product_dtype.itemsize
    return "" if total >= MAPPED else f"logits of {total / 2**20:.3g} MiB are cheap to write"


def _is_cheap(dtype: torch.dtype) -> bool:
    """Whether products take so little that what follows them is most of the time."""
    return dtype.itemsize == 2 and multiplies_in_hardware(dtype)
