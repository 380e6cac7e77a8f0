"""Where a library kernel is faster than what Inductor makes of the same region.

On a CPU the flash kernel never writes the scores. That is worth something only once they leave the
cache, and its own products, in small blocks, are slower than two large ones; docs/decisions.md has
the measurements behind the thresholds. What holds for a GPU is in `gpu`.
"""

from __future__ import annotations

import torch

from fuser.pattern import Call
from fuser.specs import AttentionSpec
from fuser.torch_private import multiplies_in_hardware

from ..base import Context, size

INFERENCE, TRAINING = 4, 8
"""Fewest queries and keys, for each feature, in fp32."""
HARDWARE_HALF = 16
"""The same for a half dtype that the CPU multiplies itself."""
MAPPED = 32 << 20
"""Bytes from which glibc's malloc maps memory anew, page by page, at every allocation."""
FLEX, CHUNKED, REFERENCE = 1.3, 3.0, 6.0
"""Time that FlexAttention, the chunked operator and the reference take for a score, over that of
the flash kernel."""
SPARSE = 0.6
"""Share of the scores up to which a kernel that skips the others wins whatever the dtype."""
SAME_MASK = "the call that is there reads the same mask"
RECOGNISED = 8
"""The same for a plain program, or one with a mask from data: Inductor may call SDPA there."""


def converts(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the products of a half dtype are computed number by number: casts cost less."""
    half = dtype.is_floating_point and dtype.itemsize < 4
    return half and device.type == "cpu" and not multiplies_in_hardware(dtype)


def slower(call: Call, context: Context, *, structured: bool, plain: bool) -> str:
    """Why Inductor is expected to be at least as fast on a CPU, in plain words; else empty.

    Args:
        call: what is computed.
        context: where.
        structured: the kernel skips what the mask rules out.
        plain: nothing is known of a mask or bias, or there is none.
    """
    if context.native:
        return "" if structured else SAME_MASK
    spec: AttentionSpec = call.spec
    half = spec.dtype.itemsize < 4
    if converts(spec.dtype, context.device):
        return ""
    if half and context.training and not structured:
        return f"this CPU multiplies {_name(spec.dtype)}, and the backward reads every score"
    fewest = TRAINING if context.training else INFERENCE
    if half:
        fewest = RECOGNISED if plain else HARDWARE_HALF
    rows, keys, features = (size(call, "q0", 2), size(call, "k0", 2), size(call, "q0", 3))
    if rows is None or keys is None or features is None or min(rows, keys) >= fewest * features:
        return ""
    return (
        f"{rows} queries and {keys} keys of {features} features are too few for it to beat the "
        f"inner backend in {_name(spec.dtype)}"
    )


def slower_in_chunks(spec: AttentionSpec) -> str:
    """The same for the chunked operator, which computes in fp32."""
    if converts(spec.dtype, torch.device("cpu")):
        return ""
    return "it saves memory, not time"


def slower_in_flex(call: Call, context: Context, share: float) -> str:
    """The same for FlexAttention, which computes this share of all scores."""
    spec: AttentionSpec = call.spec
    if share <= SPARSE:
        return ""
    if context.native:
        return "the call that is there computes no more"
    if spec.dtype.itemsize < 4:
        if multiplies_in_hardware(spec.dtype):
            return f"this CPU multiplies {_name(spec.dtype)}"
        return ""
    total = spec.dtype.itemsize
    for name, dim in (("q0", 0), ("q0", 1), ("q0", 2), ("k0", 2)):
        total *= size(call, name, dim) or 1
    return "" if total >= MAPPED else f"scores of {total / 2**20:.3g} MiB are cheap to write"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
