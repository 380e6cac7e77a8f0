"""Kernels that sort choices by expert: counts of parts, their sums, and then each choice's place.

Choices keep their order within an expert, so that sums have one order.
"""

from __future__ import annotations

import torch

from ...triton.kernel import pointer
from .config import Config
from .layout import Layout
from .text import I32, Argument, Text, power_of_two

TABLE = 1 << 13
"""Elements of the table of choices and experts that a program has in its registers."""
SCANNED = (64, 16)
"""Parts and experts of the table of counts that a program adds up at a time."""


def part(layout: Layout) -> int:
    """Choices of one program."""
    return max(16, min(1024, TABLE // power_of_two(layout.spec.experts)))


def count_text(layout: Layout, config: Config, index: torch.dtype) -> Text:
    """Counts of the choices of each expert in each part, `(parts, experts)`."""
    arguments = [Argument("indices", pointer(index), "tk"), Argument("counts", I32)]
    text = Text(
        "count", "How many choices of a part each expert has.", layout, config, arguments,
        ("CHOICES", "K"),
    )  # fmt: skip
    _chosen(text)
    width = power_of_two(layout.spec.experts)
    text.write(f"tl.store(counts + tl.program_id(0) * {width} + experts, tl.sum(one, 0))")
    return text


def scan_text(layout: Layout, config: Config) -> Text:
    """Counts become those of all parts before; the row after the last part is their sum."""
    text = Text(
        "scan", "How many choices each expert has in the parts before.", layout, config,
        [Argument("counts", I32)], ("PARTS",),
    )  # fmt: skip
    write, width = text.write, power_of_two(layout.spec.experts)
    parts, experts = SCANNED[0], min(SCANNED[1], width)
    write(f"experts = tl.program_id(0) * {experts} + tl.arange(0, {experts})")
    write(f"parts = tl.arange(0, {parts})")
    write(f"before = tl.zeros([{experts}], tl.int32)")
    with write.block(f"for first in range(0, PARTS, {parts}):"):
        write(f"at = counts + (first + parts)[:, None] * {width} + experts[None, :]")
        write("there = (first + parts < PARTS)[:, None]")
        write("own = tl.load(at, mask=there, other=0)")
        write("tl.store(at, tl.cumsum(own, 0) - own + before[None, :], mask=there)")
        write("before += tl.sum(own, 0)")
    write(f"tl.store(counts + PARTS * {width} + experts, before)")
    return text


def scan_programs(layout: Layout) -> int:
    """How many programs `scan` has."""
    width = power_of_two(layout.spec.experts)
    return width // min(SCANNED[1], width)


def place_text(layout: Layout, config: Config, index: torch.dtype, alone: bool) -> Text:
    """Places of the choices of a part, and where each expert's begin, `(experts + 1)`.

    Args:
        layout: what it is specialised on.
        config: how it is cut.
        index: dtype of the indices.
        alone: there is one part, which nobody has counted.
    """
    arguments = [
        Argument("indices", pointer(index), "tk"),
        *([] if alone else [Argument("counts", I32)]),
        Argument("order", I32),
        Argument("starts", I32),
    ]
    text = Text(
        "place", "Where the choices of a part are among those of their expert.", layout, config,
        arguments, ("CHOICES", "K") if alone else ("CHOICES", "K", "PARTS"),
    )  # fmt: skip
    write, width = text.write, power_of_two(layout.spec.experts)
    _chosen(text)
    if alone:
        write("total = tl.sum(one, 0)")
    else:
        write(f"total = tl.load(counts + PARTS * {width} + experts)")
        write(f"earlier = tl.load(counts + tl.program_id(0) * {width} + experts)")
    write("ends = tl.cumsum(total, 0)")
    with write.block("if tl.program_id(0) == 0:"):
        write(f"tl.store(starts + experts + 1, ends, mask=experts < {layout.spec.experts})")
        write("tl.store(starts, 0)")
    first = "ends - total" if alone else "ends - total + earlier"
    write(f"rank = tl.cumsum(one, 0) - one + ({first})[None, :]")
    write("place = tl.sum(one * rank, 1)")
    write("tl.store(order + place, at, mask=tl.sum(one, 1) > 0)")
    return text


def _chosen(text: Text) -> None:
    """`one`: which expert (column) each choice of the part (row) is of; none, if there is none."""
    write, experts = text.write, text.layout.spec.experts
    size, width = part(text.layout), power_of_two(experts)
    write(f"at = tl.program_id(0) * {size} + tl.arange(0, {size})")
    write("there = at < CHOICES")
    write("at_index = indices + (at // K) * indices_t + (at % K) * indices_k")
    write(f"chosen = tl.load(at_index, mask=there, other={experts})")
    if not text.layout.spec.dropping:
        write(f"chosen = tl.where(chosen < 0, chosen + {experts}, chosen)")
    write(f"experts = tl.arange(0, {width})")
    write("is_chosen = (chosen[:, None] == experts[None, :])"
          + (f" & (experts < {experts})[None, :]" if width > experts else ""))  # fmt: skip
    write("one = (is_chosen & there[:, None]).to(tl.int32)")
