"""What torch's one-node attentions compute, spelled out in ordinary operators.

Each function mirrors one source: `multi_head` is torch/nn/functional.py, `native_multi_head` and
`encoder_layer` are aten/src/ATen/native/transformers (attention.cpp, transformer.cpp), whose masks
are bool or made so (a float bias is not added) and leave NaN in a row that hides every key.
Arguments are those of the composite by name; `emit` inserts a call and returns its node.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fuser.graph.ops import Kind, value
from fuser.graph.view import GraphView

from .modes import Emitter

Arguments = Mapping[str, Any]
Projected = tuple[Node, Node, Node]
"""Queries (B, H, Sq, D), keys and values (B, H, Sk, D)."""


def multi_head(emit: Emitter, a: Arguments) -> Node:
    """`F.multi_head_attention_forward` without dropout: its first result, (Sq, B, E) or (Sq, E)."""
    tokens, embed = [a["query"], a["key"], a["value"]], a["embed_dim_to_check"]
    batched = value(a["query"]).ndim == 3
    if not batched:
        made = {t: emit(torch.unsqueeze, t, 1) for t in tokens}
        tokens = [made[t] for t in tokens]
    if a["use_separate_proj_weight"]:
        weights = [a[f"{x}_proj_weight"] for x in "qkv"]
        bias = a["in_proj_bias"]
        biases = [None] * 3 if bias is None else _chunks(emit, bias, 3, 0)
        projected = [emit(F.linear, *x) for x in zip(tokens, weights, biases, strict=True)]
    else:
        projected = _packed(emit, tokens, a["in_proj_weight"], a["in_proj_bias"], embed)
    q, k, v = (
        emit(torch.permute, _heads(emit, p, a["num_heads"], embed), (1, 2, 0, 3)) for p in projected
    )
    context = _multi_head_context(emit, a, (q, k, v), batched)
    merged = emit(torch.flatten, emit(torch.permute, context, (2, 0, 1, 3)), 2)
    out = emit(F.linear, merged, a["out_proj_weight"], a["out_proj_bias"])
    return out if batched else emit(torch.squeeze, out, 1)


def masks_of(a: Arguments) -> list[Node]:
    """The masks that `F.multi_head_attention_forward` reads; a causal hint may replace its own."""
    padding, mask = a["key_padding_mask"], a["attn_mask"]
    if padding is None and a["is_causal"] and not a["need_weights"]:
        return []
    return [m for m in (mask, padding) if m is not None]


def native_multi_head(emit: Emitter, a: Arguments) -> Node:
    """`torch._native_multi_head_attention` of one (B, S, E) tensor with itself."""
    embed, heads = a["embed_dim"], a["num_head"]
    projected = _packed(emit, [a["query"]] * 3, a["qkv_weight"], a["qkv_bias"], embed)
    q, k, v = (emit(torch.transpose, _heads(emit, p, heads, embed), 1, 2) for p in projected)
    if a["mask"] is None:
        context = emit(F.scaled_dot_product_attention, q, k, v)
    else:
        hidden = _unfilled(emit, a["mask"])
        if value(hidden).dtype is not torch.bool:
            hidden = emit(torch.ne, hidden, 0)
        if value(hidden).ndim == 2 and a["mask_type"] == 1:
            hidden = _per_row(emit, hidden)
        scores = emit(torch.masked_fill, _scores(emit, q, k, embed // heads), hidden, -math.inf)
        context = emit(torch.matmul, emit(torch.softmax, scores, -1), v)
    merged = emit(torch.flatten, emit(torch.transpose, context, 1, 2), 2)
    return emit(F.linear, merged, a["proj_weight"], a["proj_bias"])


def encoder_layer(emit: Emitter, a: Arguments) -> Node:
    """`torch._transformer_encoder_layer_fwd` of (B, S, E) tokens."""

    def norm(x: Node, which: int) -> Node:
        weight, bias = a[f"norm_weight_{which}"], a[f"norm_bias_{which}"]
        return emit(F.layer_norm, x, (a["embed_dim"],), weight, bias, a["eps"])

    def attend(x: Node) -> Node:
        return native_multi_head(emit, {**a, "query": x, "num_head": a["num_heads"]})

    def feed_forward(x: Node) -> Node:
        hidden = emit(F.linear, x, a["ffn_weight_1"], a["ffn_bias_1"])
        # the kernels of `_addmm_activation` differ: exact on CPU, tanh in cuBLASLt's epilogue
        exact = value(x).device.type == "cpu"
        hidden = (
            emit(F.gelu, hidden, approximate="none" if exact else "tanh")
            if a["use_gelu"]
            else emit(F.relu, hidden)
        )
        return emit(F.linear, hidden, a["ffn_weight_2"], a["ffn_bias_2"])

    x = a["src"]
    if a["norm_first"]:
        x = emit(torch.add, attend(norm(x, 1)), x)
        return emit(torch.add, feed_forward(norm(x, 2)), x)
    x = norm(emit(torch.add, attend(x), x), 1)
    return norm(emit(torch.add, feed_forward(x), x), 2)


def _packed(
    emit: Emitter, tokens: list[Node], weight: Node, bias: Node | None, embed: int
) -> list[Node]:
    """Project by one (3 E, E) weight, with as few products as there are different inputs."""
    q, k, v = tokens
    if q is k and k is v:
        return _chunks(emit, emit(F.linear, q, weight, bias), 3, -1)
    if k is v:
        parts = [
            [None if x is None else emit(torch.narrow, x, 0, *cut) for x in (weight, bias)]
            for cut in ((0, embed), (embed, 2 * embed))
        ]
        return [
            emit(F.linear, q, *parts[0]),
            *_chunks(emit, emit(F.linear, k, *parts[1]), 2, -1),
        ]
    biases = [None] * 3 if bias is None else _chunks(emit, bias, 3, 0)
    weights = _chunks(emit, weight, 3, 0)
    return [emit(F.linear, *x) for x in zip(tokens, weights, biases, strict=True)]


def _chunks(emit: Emitter, x: Node, count: int, dim: int) -> list[Any]:
    chunks = emit(torch.chunk, x, count, dim)
    return [emit(operator.getitem, chunks, i) for i in range(count)]


def _heads(emit: Emitter, x: Node, heads: int, embed: int) -> Node:
    """(..., E) -> (..., H, D)."""
    return emit(torch.unflatten, x, -1, (heads, embed // heads))


def _multi_head_context(emit: Emitter, a: Arguments, qkv: Projected, batched: bool) -> Node:
    """Attention over heads; by softmax where a row without keys must be NaN instead of zero."""
    q, k, v = qkv
    read = masks_of(a)
    causal = bool(a["is_causal"]) and not a["need_weights"] and a["key_padding_mask"] is None
    if not read:
        return emit(F.scaled_dot_product_attention, q, k, v, is_causal=causal)
    masks = []
    for index, mask in enumerate(read):
        mask = _unfilled(emit, mask)
        if a["attn_mask"] is None or index == 1:
            mask = _per_row(emit, mask if batched else emit(torch.unsqueeze, mask, 0))
        elif value(mask).ndim == 3:
            mask = emit(torch.unflatten, mask, 0, (-1, a["num_heads"]))
        masks.append(mask)
    if not a["need_weights"]:
        merged = _merged(emit, masks, a, allow_bool=True)
        return emit(F.scaled_dot_product_attention, q, k, v, merged)
    scores = _scores(emit, q, k, a["embed_dim_to_check"] // a["num_heads"])
    added = _merged(emit, masks, a, allow_bool=False)
    if value(added).dtype != value(scores).dtype:
        added = emit.method("to", added, value(scores).dtype)
    probs = emit(torch.softmax, emit(torch.add, scores, added), -1)
    return emit(torch.matmul, probs, v)


def _merged(emit: Emitter, masks: list[Node], a: Arguments, *, allow_bool: bool) -> Node:
    """The sum of masks; of bools alone, which hide where true, one that keeps where true."""
    if allow_bool and all(value(m).dtype is torch.bool for m in masks):
        hidden = masks[0] if len(masks) == 1 else emit(torch.logical_or, *masks)
        return emit(torch.logical_not, hidden)
    dtype = value(a["query"]).dtype
    added = [
        emit(torch.masked_fill, emit(torch.zeros_like, m, dtype=dtype), m, -math.inf)
        if value(m).dtype is torch.bool
        else m
        for m in masks
    ]
    return added[0] if len(added) == 1 else emit(torch.add, *added)


def _unfilled(emit: Emitter, mask: Node) -> Node:
    """The bool mask from which `zeros_like(m).masked_fill_(m, -inf)`, perhaps viewed, was made.

    torch's modules fill every bool mask so before they call a composite; hiding by either is equal.
    """
    view, node = emit.view, mask
    chain: list[Node] = []
    while view.op(node).kind is Kind.VIEW and isinstance(source := node.args[0], Node):
        chain.append(node)
        node = source
    hidden = _filled_from(view, node)
    if hidden is None:
        return mask
    now = len(view.nodes)
    if view.mutated_between(node, view.order[node] + 1, now) is not None:
        return mask
    if view.mutated_between(hidden, view.order[node], now) is not None:
        return mask
    for again in reversed(chain):
        hidden = emit.again(again, hidden)
    return hidden


def _filled_from(view: GraphView, node: Node) -> Node | None:
    op = view.op(node)
    zeros, hidden = op.args.get("input"), op.args.get("mask")
    if op.name != "masked_fill" or op.args.get("value") != -math.inf:
        return None
    if not isinstance(zeros, Node) or zeros.target is not torch.zeros_like:
        return None
    if op.inplace and len(zeros.users) > 1:
        return None
    if not isinstance(hidden, Node) or value(hidden).dtype is not torch.bool:
        return None
    return hidden if zeros.args[:1] == (hidden,) else None


def _per_row(emit: Emitter, padding: Node) -> Node:
    """(B, Sk) -> (B, 1, 1, Sk)."""
    return emit(torch.unsqueeze, emit(torch.unsqueeze, padding, 1), 1)


def _scores(emit: Emitter, q: Node, k: Node, features: int) -> Node:
    scaled = emit(torch.mul, q, math.sqrt(1.0 / features))
    return emit(torch.matmul, scaled, emit(torch.transpose, k, -2, -1))
