"""The second kernel of a split forward: parts of a query's keys become one result."""

from __future__ import annotations

import torch

from ...triton.kernel import pointer
from .kernel_text import KernelText, row_statistics
from .layout import Layout
from .memory import chunks


def combine_text(layout: Layout) -> KernelText:
    """The kernel `(part, part_max, part_sum) -> out, m, l`; a sink joins here, once."""
    fp32 = pointer(torch.float32)
    tensors = (
        ("part", fp32, "sbhmd"), ("part_max", fp32, "sbhm"), ("part_sum", fp32, "sbhm"),
        ("out", pointer(layout.spec.dtype), "bhmd"), *row_statistics(),
    )  # fmt: skip
    about = "Adds up the parts of attention over split keys."
    text = KernelText("combine_kernel", layout, about, tensors, ("SPLITS",))
    write, tile = text.body, text.tile
    text.heads_of_rows()
    tile.features(layout.v)
    tile.captured("bhq", "in_rows", None)
    text.start_statistics(sink=True)
    for name in ("part", "part_max", "part_sum"):
        write(f"{name}_rows = {tile.queries(name).pointers(name)}")
    count = len(chunks(layout.v.features))
    with write.block("for s in range(SPLITS):"):
        write("m_part = tl.load(part_max_rows + s * part_max_s, mask=in_rows, other=0.0)")
        write("l_part = tl.load(part_sum_rows + s * part_sum_s, mask=in_rows, other=0.0)")
        write("m_new = tl.maximum(m, m_part)")
        write('base = tl.where(m_new == float("-inf"), 0.0, m_new)')
        write(f"shrink = {tile.exponential('m - base')}")
        write(f"share = {tile.exponential('m_part - base')}")
        write("l = l * shrink + l_part * share")
        for j, (start, size) in enumerate(chunks(layout.v.features)):
            along = f"d{start}_{size}" if start else f"d{size}"
            mask = "in_rows[:, None]"
            if start + size > layout.v.features:
                mask += f" & ({along} < {layout.v.features})[None, :]"
            at = f"part_rows[:, None] + s * part_s + ({along} * part_d)[None, :]"
            write(f"acc_part = tl.load({at}, mask={mask}, other=0.0)")
            write(f"acc_{j} = acc_{j} * shrink[:, None] + acc_part * share[:, None]")
        write("m = m_new")
    text.finish(count)
    return text
