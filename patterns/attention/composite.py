"""torch's own attentions in one node: opened, so that what is inside can be seen.

An opening without a mask ends in `F.scaled_dot_product_attention` and is final. Under a mask the
opened form is left to the other patterns, which may know the mask while compiling.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import Node

from fuser.builder import Builder
from fuser.graph.axes import Unproven
from fuser.graph.modes import modes_at
from fuser.graph.ops import is_tensor, value
from fuser.graph.view import GraphView
from fuser.pattern import Decline, Match, Pattern
from fuser.registry import register_pattern

from . import opened
from .modes import Emitter

_FORWARD = inspect.signature(F.multi_head_attention_forward)
_NATIVE = (
    "query key value embed_dim num_head qkv_weight qkv_bias proj_weight proj_bias mask "
    "need_weights average_attn_weights mask_type"
).split()
_LAYER = (
    "src embed_dim num_heads qkv_weight qkv_bias proj_weight proj_bias use_gelu norm_first eps "
    "norm_weight_1 norm_bias_1 norm_weight_2 norm_bias_2 ffn_weight_1 ffn_bias_1 ffn_weight_2 "
    "ffn_bias_2 mask mask_type"
).split()
_FLAGS = (
    "num_heads num_head embed_dim embed_dim_to_check add_zero_attn dropout_p training need_weights "
    "use_separate_proj_weight is_causal use_gelu norm_first eps mask_type"
).split()
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@register_pattern
class MultiHead(Pattern):
    """Open multi-head attention with its projections.

        multi_head_attention_forward(q, k, v, ...)   =>   linear, attention over heads, linear

    Declines:   weights that are used; dropout; keys that are appended or given ready made.
    """

    id: ClassVar[str] = "attention.multi_head"
    priority: ClassVar[int] = 4

    def anchors(self, view: GraphView) -> Iterable[Node]:
        for node in view.nodes:
            if node.target is F.multi_head_attention_forward or _is_native(node, _MULTI_HEAD):
                yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        results = _results(anchor)
        if isinstance(results, Decline):
            return results
        if not results:
            return None
        if anchor.target is F.multi_head_attention_forward:
            bound = _FORWARD.bind(*anchor.args, **anchor.kwargs)
            bound.apply_defaults()
            a = bound.arguments
            reason = _unread(a) or _appended(a)
            if reason:
                return Decline(reason, anchor)
            if a["is_causal"] and a["attn_mask"] is None:
                return None
            return _match(self.id, view, anchor, results, opened.multi_head, a)
        a = _native_arguments(anchor, _NATIVE)
        reason = _unread(a) or _unlike_native(view, anchor, a, a["query"])
        if not reason and not (a["query"] is a["key"] and a["key"] is a["value"]):
            reason = "query, key and value are not one tensor"
        if reason:
            return Decline(reason, anchor)
        return _match(self.id, view, anchor, results, opened.native_multi_head, a)


@register_pattern
class EncoderLayer(Pattern):
    """Open the inference kernel of `nn.TransformerEncoderLayer`.

        _transformer_encoder_layer_fwd(x, ...)   =>   x + attention, x + feed forward, with norms

    Declines:   gelu on a device whose kernel is not known to be exact or tanh.
    """

    id: ClassVar[str] = "attention.encoder_layer"
    priority: ClassVar[int] = 4

    def anchors(self, view: GraphView) -> Iterable[Node]:
        return (node for node in view.nodes if _is_native(node, _ENCODER_LAYER))

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        a = _native_arguments(anchor, _LAYER)
        reason = _unread(a) or _unlike_native(view, anchor, a, a["src"])
        if not reason and a["use_gelu"] and value(anchor).device.type not in ("cpu", "cuda"):
            reason = f"which gelu {value(anchor).device.type} computes is not known"
        if reason:
            return Decline(reason, anchor)
        return _match(self.id, view, anchor, (anchor,), opened.encoder_layer, a)


_MULTI_HEAD, _ENCODER_LAYER = "_native_multi_head_attention", "_transformer_encoder_layer_fwd"


def _is_native(node: Node, name: str) -> bool:
    return node.op == "call_function" and node.target is getattr(torch, name, node)


def _native_arguments(node: Node, names: Sequence[str]) -> dict[str, Any]:
    given = dict(zip(names, node.args, strict=False))
    return {"mask": None, "mask_type": None, **given, **node.kwargs}


def _results(anchor: Node) -> tuple[Node, ...] | Decline:
    """The readers of the first of two results; nobody may read the second, the weights."""
    found: list[Node] = []
    for user in anchor.users:
        index = user.args[1] if user.target is operator.getitem else None
        if index == 0:
            found.append(user)
        elif index != 1 or user.users:
            return Decline(
                f"the attention weights are used elsewhere, by `{_reader(user).name}`",
                anchor,
                hint="need_weights=False",
            )
    return tuple(found)


def _reader(user: Node) -> Node:
    return next(iter(user.users), user) if user.target is operator.getitem else user


def _unread(a: opened.Arguments) -> str:
    """Why the arguments cannot be read, for any composite; empty where they can."""
    drops = a.get("training") is not False  # without it, a rate is of no use
    flags = [name for name in _FLAGS if drops or name != "dropout_p"]
    unknown = [name for name in flags if isinstance(a.get(name), Node)]
    if unknown:
        return f"`{unknown[0]}` is not known while compiling"
    tokens = [x for x in (a.get(n) for n in ("query", "key", "value", "src")) if x is not None]
    if not all(map(is_tensor, tokens)):
        return "an input is not a tensor"
    if any(value(x).is_nested for x in tokens):
        return "an input is a nested tensor"
    if value(tokens[0]).dtype not in _DTYPES:
        return f"it is computed in {str(value(tokens[0]).dtype)[6:]}"
    if any(isinstance(size, int) and size == 0 for x in tokens for size in value(x).shape):
        return "an input is empty"
    return ""


def _appended(a: opened.Arguments) -> str:
    if a["bias_k"] is not None or a["bias_v"] is not None:
        return "a learned key is appended (bias_k, bias_v)"
    if a["add_zero_attn"]:
        return "a key of zeros is appended (add_zero_attn)"
    if a["static_k"] is not None or a["static_v"] is not None:
        return "keys or values are given ready made (static_k, static_v)"
    if a["training"] and a["dropout_p"] != 0:
        return "it drops probabilities while training"
    return ""


def _unlike_native(view: GraphView, anchor: Node, a: opened.Arguments, tokens: Node) -> str:
    """The kernels have no derivative and no autocast; of masks they know three shapes."""
    outputs = value(anchor) if isinstance(value(anchor), tuple) else (value(anchor),)
    if any(isinstance(t, torch.Tensor) and t.requires_grad for t in outputs):
        return "the kernel has no derivative"
    try:
        with modes_at(view, anchor):
            if torch.is_autocast_enabled(value(tokens).device.type):
                return "the kernel runs under autocast"
    except Unproven as error:
        return str(error)
    mask = a["mask"]
    if value(tokens).ndim != 3:
        return "its input is not (batch, sequence, features)"
    if mask is None or value(mask).ndim == 4:
        return ""
    if value(mask).ndim != 2 or a["mask_type"] not in (0, 1):
        return "the shape of the mask does not fit its type"
    return ""


def _match(
    pattern: str,
    view: GraphView,
    anchor: Node,
    results: tuple[Node, ...],
    spell: Any,
    a: opened.Arguments,
) -> Match | Decline | None:
    masked = bool(opened.masks_of(a)) if "attn_mask" in a else a["mask"] is not None
    try:
        with modes_at(view, anchor):
            pass
    except Unproven as error:
        return Decline(str(error), anchor)
    if not anchor.users:
        return None
    name = str(getattr(anchor.target, "__name__", anchor.target))
    return Match(
        pattern=pattern,
        anchor=anchor,
        nodes=frozenset({anchor, *(u for u in anchor.users if results != (anchor,))}),
        outputs=results,
        facts={"opened": name, "mask": "left to other patterns" if masked else "none"},
        replacement=partial(_insert, view, anchor, spell, a, len(results)),
        opens=masked,
    )


def _insert(
    view: GraphView, anchor: Node, spell: Any, a: opened.Arguments, results: int, builder: Builder
) -> Sequence[Node]:
    with modes_at(view, anchor):
        return [spell(Emitter(view, builder), a)] * results
