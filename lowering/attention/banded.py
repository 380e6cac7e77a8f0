"""Sliding windows and chunks without a mask over all keys: attention between neighbouring blocks.

Queries are cut into blocks as wide as the window. A block of queries sees its own block of keys
and, in a sliding window, the one before; both under one small mask that all blocks share. For S
queries and a window of W this is 2WS scores instead of SS, and nothing of size SS is made. What is
missing in the last block is padded: keys after all others, which no other query sees.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.ops import value

from .mask import MaskFacts, MaskKind


def fits(facts: MaskFacts, rows: Any, keys: Any) -> bool:
    """Whether a mask is a band for which blocks are less work than all scores."""
    if facts.kind not in (MaskKind.WINDOW, MaskKind.CHUNKED) or not isinstance(rows, int):
        return False
    return rows == keys and rows > facts.width and share(facts, rows) < 1


def share(facts: MaskFacts, rows: int) -> float:
    """The work of the blocks, of which causal ones are half, over that of all scores."""
    blocks = -(-rows // facts.width)
    halves = blocks if facts.kind is MaskKind.CHUNKED else 4 * (blocks - 1) + 1
    return halves / 2 * (facts.width / rows) ** 2


def emit_banded(
    builder: Builder, q: Node, k: Node, v: Node, facts: MaskFacts, scale: float
) -> Node:
    """Attention under a band.

    Args:
        builder: where the nodes go.
        q: `(B, H, S, D)`.
        k, v: `(B, Hkv, S, D)`.
        facts: a sliding window or chunks of `facts.width` positions.
        scale: of q kᵀ.

    Returns:
        `(B, H, S, D)`.
    """
    width, batch, rows = facts.width, value(q).shape[0], value(q).shape[2]
    blocks = -(-rows // width)
    q, k, v = (_blocks(builder, x, blocks, width) for x in (q, k, v))
    if facts.kind is MaskKind.CHUNKED:
        return _join(builder, [_attend(builder, q, k, v, scale, None)], batch, rows)
    q_first, k_first, v_first = (builder.method("narrow", x, 1, 0, 1) for x in (q, k, v))
    q_later = builder.method("narrow", q, 1, 1, blocks - 1)
    k_pairs, v_pairs = (
        builder.call(
            torch.cat,
            (
                builder.method("narrow", x, 1, 0, blocks - 1),
                builder.method("narrow", x, 1, 1, blocks - 1),
            ),
            dim=3,
        )
        for x in (k, v)
    )
    mask = _band(builder, width, value(q))
    return _join(
        builder,
        [
            _attend(builder, q_first, k_first, v_first, scale, None),
            _attend(builder, q_later, k_pairs, v_pairs, scale, mask),
        ],
        batch,
        rows,
    )


def _blocks(builder: Builder, x: Node, blocks: int, width: int) -> Node:
    """(B, H, S, D) as (B, blocks, H, width, D), with zeros for what is missing at the end."""
    missing = blocks * width - value(x).shape[2]
    if missing:
        x = builder.call(F.pad, x, (0, 0, 0, missing))
    cut = builder.method("unflatten", x, 2, (blocks, width))
    return builder.method("transpose", cut, 1, 2)


def _attend(builder: Builder, q: Node, k: Node, v: Node, scale: float, mask: Node | None) -> Node:
    """SDPA in every block: (B, blocks, H, rows, D); causal where there is no mask."""
    q, k, v = (builder.method("flatten", x, 0, 1) for x in (q, k, v))
    keywords: dict[str, Any] = {"scale": scale}
    if mask is None:
        keywords["is_causal"] = True
    else:
        keywords["attn_mask"] = mask
    if value(q).shape[1] != value(k).shape[1]:
        keywords["enable_gqa"] = True
    return builder.call(F.scaled_dot_product_attention, q, k, v, **keywords)


def _band(builder: Builder, width: int, like: torch.Tensor) -> Node:
    """Keys j of the previous and the own block that query i of a block sees: i < j <= i + width."""
    device = like.device
    i = builder.method("unsqueeze", builder.call(torch.arange, width, device=device), 1)
    j = builder.call(torch.arange, 2 * width, device=device)
    distance = builder.call(torch.sub, j, i)
    keep = builder.call(
        torch.logical_and,
        builder.call(torch.gt, distance, 0),
        builder.call(torch.le, distance, width),
    )
    zero = builder.call(torch.zeros, (), dtype=like.dtype, device=device)
    mask = builder.call(torch.where, keep, zero, float("-inf"))
    return builder.method("reshape", mask, (1, 1, width, 2 * width))


def _join(builder: Builder, parts: list[Node], batch: Any, rows: int) -> Node:
    """Blocks of several calls, (B·blocks, H, width, D) each, as (B, H, rows, D)."""
    opened = [builder.method("unflatten", x, 0, (batch, -1)) for x in parts]
    whole = opened[0] if len(opened) == 1 else builder.call(torch.cat, tuple(opened), dim=1)
    turned = builder.method("transpose", whole, 1, 2)
    whole = builder.method("flatten", turned, 2, 3)
    return whole if value(whole).shape[2] == rows else builder.method("narrow", whole, 2, 0, rows)
