# Triton, which reads annotations itself, types parameters call by call.
# pyright: reportMissingParameterType=false
"""Device functions that the generated kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dropped(seed, head, query, key, rate):
    """Whether a probability is dropped: Philox at its position, whatever the tiles are.

    Args:
        seed: one int64.
        head: number of the query head in the batch.
        query, key: positions, which broadcast to the tile.
        rate: probability of a drop.
    """
    zero = query * 0 + key * 0
    bits = tl.philox(seed, zero + key, zero + query, zero + head.to(tl.int32), zero)
    return tl.uint_to_uniform_float(bits[0]) < rate
