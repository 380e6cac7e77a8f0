"""Structured masks by blocks: which blocks of keys a block of queries sees, and each element.

Every block of queries sees a range of blocks of keys. The ranges are known while compiling and are
a few numbers, so nothing of size Sq x Sk is made, stored or hashed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .mask import MaskFacts, MaskKind

SIZE = 64
"""Queries and keys in a block: small enough to skip most of what a window leaves out."""
STRUCTURED = (MaskKind.CAUSAL, MaskKind.WINDOW, MaskKind.CHUNKED, MaskKind.PREFIX)


def visited(facts: MaskFacts, rows: int, keys: int) -> float:
    """The share of all scores that lie in blocks which are computed."""
    ranges = _ranges(facts, rows, keys)
    return sum(map(len, ranges)) / (len(ranges) * -(-keys // SIZE))


def block_mask(facts: MaskFacts, rows: int, keys: int) -> BlockMask:
    """What FlexAttention skips, and the mask of each element that it does not.

    Args:
        facts: a mask of one of the `STRUCTURED` kinds, under which every query keeps a key.
        rows, keys: numbers of queries and keys.
    """
    ranges, across = _ranges(facts, rows, keys), -(-keys // SIZE)
    count = torch.tensor([[[len(r) for r in ranges]]], dtype=torch.int32)
    first = torch.tensor([[[[r.start] for r in ranges]]], dtype=torch.int32)
    # of each row of blocks the first so many count
    blocks = (first + torch.arange(across, dtype=torch.int32)).clamp(max=across - 1)
    return BlockMask.from_kv_blocks(
        count,
        blocks,
        BLOCK_SIZE=SIZE,
        mask_mod=keeps(facts),
        seq_lengths=(rows, keys),
        compute_q_blocks=False,
    )


def keeps(facts: MaskFacts) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`(b, h, q_idx, kv_idx) -> whether the query sees the key`, all 0-d."""
    kind, width = facts.kind, facts.width

    def keep(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        found = j <= i
        if kind is MaskKind.WINDOW:
            found = found & (j > i - width)
        elif kind is MaskKind.CHUNKED:
            found = found & (i // width == j // width)
        elif kind is MaskKind.PREFIX:
            found = found | (j < width)
        return found

    return keep


def _ranges(facts: MaskFacts, rows: int, keys: int) -> list[range]:
    """The blocks of keys that each block of queries sees."""
    found: list[range] = []
    for top in range(0, rows, SIZE):
        first, last = 0, min(top + SIZE, rows, keys) - 1
        if facts.kind is MaskKind.WINDOW:
            first = max(0, top - facts.width + 1)
        elif facts.kind is MaskKind.CHUNKED:
            first = top - top % facts.width
        elif facts.kind is MaskKind.PREFIX:
            last = max(last, facts.width - 1)
        found.append(range(first // SIZE, last // SIZE + 1))
    return found
