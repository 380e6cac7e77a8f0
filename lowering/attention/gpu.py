"""What is expected of the candidates on a GPU: rules that are argued here, and not measured yet.

Work is counted in units of SDPA's flash kernels computing every score. The rules:

- plain and causal programs go to those kernels, which the makers of the GPU tune by hand;
- everything else goes to the generated kernel: SDPA takes a mask in one kernel only, which is older
  and reads it for every head, or computes every score in memory;
- what is so small that moving all of it takes no longer than launching one kernel is left to the
  inner backend, which saves compiling a kernel; not where SDPA is fused, since Inductor's own
  patterns, which are off, would put it there at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy
import torch

from fuser.graph.program import Program
from fuser.pattern import Call
from fuser.specs import AttentionSpec

from ..base import size
from . import tiles
from .conditions import BATCHES, HEADS, IB, IH, KEYS, ROWS

GENERATED = 1.3
"""A generated kernel: the same algorithm, with what the hand-written ones plan left to Triton. Half
of the scores in it are less work than all of them in a flash kernel."""
EFFICIENT = 2.0
"""SDPA's memory-efficient kernel, written for the tensor cores of sm_80 and the same on later GPUs;
or a flash kernel on operands that had to be padded."""
FEATURES = 256
"""Most features of a head in flash kernels (`check_head_dim_size_flash` in torch's sdp_utils)."""
CONSUMER_FEATURES = 192
"""The same for the backward on GPUs with less shared memory (sm_86, sm_89, sm_120)."""
SMALL = 8 << 20
"""Bytes that a GPU moves while a kernel is launched: 4 µs at 2 TB/s. At most that, and two more
launches, the inner backend loses."""
PASSES = 4
"""Of scores through memory where they are written: out of the first product, in and out of the
softmax, into the second product."""
BLOCK = 128
"""Queries of a tile, for the share of the keys that it visits."""
SAMPLES = 32


def is_fused(
    call: Call, dtype: torch.dtype, *, causal: bool, training: bool, device: torch.device
) -> bool:
    """Whether SDPA runs a flash kernel, FlashAttention's or cuDNN's, for a program without a mask.

    They ask for half precision, a recent GPU and as many features of v as of q; a causal one for as
    many queries as keys, as FlashAttention's mask is aligned at the last key, SDPA's at the first.

    Args:
        call: what is computed.
        dtype: of q, k and v as SDPA is given them.
        causal: SDPA applies its causal mask.
        training: there is a backward.
        device: a GPU.
    """
    spec: AttentionSpec = call.spec
    if dtype.itemsize != 2 or spec.dropout or not _is_on():
        return False
    capability = _capability(device)
    products = range(spec.contractions)
    widths = [size(call, "v", 3), _total([size(call, f"q{i}", 3) for i in products])]
    rows, keys = size(call, "q0", 2), size(call, "k0", 2)
    if capability < (8, 0) or widths[0] != widths[1] or (causal and rows != keys):
        return False
    small = training and capability in ((8, 6), (8, 9), (12, 0), (12, 1))
    return widths[0] is not None and widths[0] <= (CONSUMER_FEATURES if small else FEATURES)


def _total(sizes: list[int | None]) -> int | None:
    known = [n for n in sizes if n is not None]
    return sum(known) if len(known) == len(sizes) else None


def _is_on() -> bool:
    """The user may have switched SDPA's kernels off."""
    return torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.cudnn_sdp_enabled()


def _capability(device: torch.device) -> tuple[int, int]:
    """Of a GPU; where there is none, of one that has everything."""
    if not torch.cuda.is_available():
        return (9, 0)
    return torch.cuda.get_device_capability(device)


def is_grouped(call: Call) -> bool:
    """Whether several query heads share a key head, as in SDPA only its flash kernels can."""
    return size(call, "q0", 1) != size(call, "k0", 1)


def slower(call: Call) -> str:
    """Why the inner backend is expected to be as fast as one kernel; empty where it is not."""
    found = moved(call)
    if found is None or found > SMALL:
        return ""
    return f"all it moves, {found / 2**20:.2g} MiB, costs no more than to launch a kernel"


def moved(call: Call) -> int | None:
    """Bytes through memory where the scores are written, key heads repeated; None if not known."""
    spec: AttentionSpec = call.spec
    sizes = [size(call, "q0", 0), size(call, "q0", 1), size(call, "q0", 2), size(call, "k0", 2)]
    widths = [size(call, f"q{i}", 3) for i in range(spec.contractions)]
    features, values = _total(widths), size(call, "v", 3)
    if any(n is None for n in (*sizes, features, values)):
        return None
    batch, heads, rows, keys = (n or 0 for n in sizes)
    elements = (rows + keys) * ((features or 0) + (values or 0))
    elements += PASSES * spec.contractions * rows * keys
    return batch * heads * elements * spec.score_dtype.itemsize


@lru_cache(maxsize=1024)
def share(mask: Program | None, rows: int | None, keys: int | None) -> float:
    """The part of all scores that a generated kernel computes under a mask of its spec."""
    if mask is None or rows is None or keys is None:
        return 1.0
    found = tiles.keys_of_rows(mask)
    low, high = _function(found.low, 0), _function(found.high, keys)
    if low is None or high is None:
        return 1.0
    starts = range(0, rows, BLOCK)
    starts = starts[:: -(-len(starts) // SAMPLES)]
    visited = 0
    for start in starts:
        at = (start, min(start + BLOCK, rows) - 1, rows, keys, 1, 1, 0, 0)
        visited += max(0, min(keys, int(high(*at))) - max(0, int(low(*at))))
    return max(visited, 1) / (len(starts) * keys)


def _function(bound: sympy.Expr | None, default: int) -> Callable[..., Any] | None:
    """A bound as a function of the tile and the sizes; None where it depends on more than these."""
    if bound is None:
        return lambda *at: default
    symbols = (tiles.FIRST_ROW, tiles.LAST_ROW, ROWS, KEYS, BATCHES, HEADS, IB, IH)
    if bound.free_symbols - set(symbols):
        return None
    return sympy.lambdify(symbols, bound, "math")
