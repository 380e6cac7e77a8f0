"""Which tiles of scores are worth a visit, where data decides: found out before attention runs.

    tiles of queries x tiles of keys -> 0: nothing counts there, 1: some of it, 2: everything

The kernel evaluates `Layout.visible` alone, without q or k. From its table come two lists for each
tile of queries (or, the other way round, of keys): the tiles that it sees in part, which need the
mask, and those that it sees whole, which do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...triton.kernel import pointer
from .kernel_text import KernelText
from .layout import Layout

FEWEST_TILES = 8
"""Along queries and along keys: with fewer, making the table costs about what it saves."""


def table_text(layout: Layout) -> KernelText:
    """The kernel `captured -> kinds, dead`.

    `kinds` has a number for each tile; `dead` tells for each tile of queries whether one of them
    sees no key at all. Both are for the batches and heads along which the condition differs.
    """
    axes, small = layout.visible_axes, pointer(torch.int8)
    text = KernelText(
        "table_kernel", layout, "What a tile of queries sees of every tile of keys.",
        (("kinds", small, axes + "mn"), ("dead", small, axes + "m")), ("OWN_B", "OWN_H"),
    )  # fmt: skip
    write, tile, found = text.body, text.tile, layout.visible
    assert found is not None
    write("blocks = tl.cdiv(SQ, BLOCK_M)")
    write("block = tl.program_id(0) % blocks")
    write("b = (tl.program_id(0) // blocks // OWN_H).to(tl.int64)")
    write("h = (tl.program_id(0) // blocks % OWN_H).to(tl.int64)")
    write("rows = tl.arange(0, BLOCK_M)")
    write("keys = tl.arange(0, BLOCK_N)")
    write("first_row = tl.cast(block * BLOCK_M, tl.int64)")
    write("iq = block * BLOCK_M + rows")
    write("in_rows = iq < SQ")
    write("alive = tl.zeros([BLOCK_M], tl.int32)")
    own = "".join(f" + {a} * kinds_{a}" for a in axes)
    write(f"kinds_row = kinds{own} + block * kinds_m")
    with write.block("for start_n in range(0, SK, BLOCK_N):"), tile.tile():
        write("ik = start_n + keys")
        write("in_keys = ik < SK")
        write("first_key = tl.cast(start_n, tl.int64)")
        tile.captured("bhqk", "in_rows", "in_keys", only=found.captured)
        condition = tile.run(found.condition, {}).text
        write(f"seen = {condition} & in_rows[:, None] & in_keys[None, :]")
        write("some = tl.max(seen.to(tl.int32), 1)")
        write("whole = tl.min(seen.to(tl.int32), 1)")
        write("alive = tl.maximum(alive, some)")
        write("kind = tl.max(some, 0) + tl.min(whole, 0)")
        write("tl.store(kinds_row + start_n // BLOCK_N * kinds_n, kind)")
    own = "".join(f" + {a} * dead_{a}" for a in axes)
    write("any_dead = tl.max(tl.where(in_rows & (alive == 0), 1, 0), 0)")
    write(f"tl.store(dead{own} + block * dead_m, any_dead)")
    return text


def lists(kinds: Tensor) -> tuple[Tensor, Tensor]:
    """What each tile of the last dimension but one visits of the last.

    Returns:
        The numbers of the tiles, those that are seen in part first and those that are not seen
        last, `(..., T, N)`; how many are seen in part, and how many at all, `(..., T, 2)`.
    """
    kinds = kinds.clone(memory_format=torch.contiguous_format)  # as the lists must be
    order = torch.argsort((kinds + 2) % 3, dim=-1, stable=True)
    counts = torch.stack([(kinds == 1).sum(-1), (kinds != 0).sum(-1)], -1)
    return order.to(torch.int32), counts.to(torch.int32)
