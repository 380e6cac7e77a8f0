"""Kernels that sort choices by expert: counts of parts, and then each choice's place.

Choices keep their order within an expert, so that sums have one order.
"""

from __future__ import annotations

import torch

from ...triton.kernel import pointer
from .config import SORTED, Config
from .layout import Layout
from .text import I32, Argument, Text, power_of_two

SCANNED = 32
"""Parts whose counts the program that adds them up has in its registers."""


def part(layout: Layout) -> int:
    """Choices of one program."""
    return max(16, min(1024, SORTED // power_of_two(layout.spec.experts)))


def sort_text(layout: Layout, config: Config, index: torch.dtype) -> Text:
    """Counts of the choices of each expert in each part, `(parts, experts)`."""
    arguments = [Argument("indices", pointer(index), "tk"), Argument("counts", I32)]
    text = Text(
        "sort", "How many choices of a part each expert has.", layout, config, arguments,
        ("CHOICES", "K"),
    )  # fmt: skip
    _chosen(text)
    width = power_of_two(layout.spec.experts)
    text.write(f"tl.store(counts + tl.program_id(0) * {width} + experts, tl.sum(one, 0))")
    return text


def place_text(layout: Layout, config: Config, index: torch.dtype) -> Text:
    """Places of the choices of a part, and where each expert's begin, `(experts + 1)`."""
    arguments = [
        Argument("indices", pointer(index), "tk"),
        Argument("counts", I32),
        Argument("order", I32),
        Argument("starts", I32),
    ]
    text = Text(
        "place", "Where the choices of a part are among those of their expert.", layout, config,
        arguments, ("CHOICES", "K", "PARTS"),
    )  # fmt: skip
    write, width = text.write, power_of_two(layout.spec.experts)
    _chosen(text)
    write(f"parts = tl.arange(0, {SCANNED})")
    write(f"total = tl.zeros([{width}], tl.int32)")
    write(f"earlier = tl.zeros([{width}], tl.int32)")
    with write.block(f"for first in range(0, PARTS, {SCANNED}):"):
        write(f"at_counts = counts + (first + parts)[:, None] * {width} + experts[None, :]")
        write("found = tl.load(at_counts, mask=(first + parts < PARTS)[:, None], other=0)")
        write("total += tl.sum(found, 0)")
        write("passed = (first + parts < tl.program_id(0))[:, None]")
        write("earlier += tl.sum(tl.where(passed, found, 0), 0)")
    write("ends = tl.cumsum(total, 0)")
    with write.block("if tl.program_id(0) == 0:"):
        write(f"tl.store(starts + experts + 1, ends, mask=experts < {layout.spec.experts})")
        write("tl.store(starts, 0)")
    write("rank = tl.cumsum(one, 0) - one + (ends - total + earlier)[None, :]")
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
    write(f"chosen = tl.where(chosen < 0, chosen + {experts}, chosen)")
    write(f"experts = tl.arange(0, {width})")
    write("is_chosen = (chosen[:, None] == experts[None, :])"
          + (f" & (experts < {experts})[None, :]" if width > experts else ""))  # fmt: skip
    write("one = (is_chosen & there[:, None]).to(tl.int32)")
