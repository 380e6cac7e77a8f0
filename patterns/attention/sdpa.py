"""Calls of `F.scaled_dot_product_attention` that say less than is known.

An explicit mask that is provably causal or absent is replaced by its structured form; key and value
heads that were repeated by hand are read once. Calls without either are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch.fx import Node

from fuser.graph.axes import Dims, Unproven, broadcast, fresh, leaves, resolve
from fuser.graph.ops import Kind, Op, is_tensor, value
from fuser.graph.program import ProgramBuilder
from fuser.graph.pull import repeated_heads
from fuser.graph.view import GraphView
from fuser.pattern import Call, Decline, Match, Operand, Pattern
from fuser.registry import register_pattern
from fuser.soundness import SIZE_OF_DATA
from fuser.specs import AttentionSpec
from fuser.torch_private import GuardOnDataDependentSymNode

from .layout import Layout, group
from .operand import axes_of, operand_from
from .walk import EMPTY, is_empty, peel


@register_pattern
class NativeAttention(Pattern):
    """Read a native call with an explicit mask, or with repeated heads, as structured attention.

        scaled_dot_product_attention(q, k, v, attn_mask=m)   =>   fuser::attention

    Declines:   a query, key or value of fewer than three dimensions; dropout.
    """

    id: ClassVar[str] = "attention.sdpa"
    priority: ClassVar[int] = 5

    def anchors(self, view: GraphView) -> Iterable[Node]:
        for node in view.nodes:
            if view.op(node).kind is Kind.ATTENTION:
                yield node

    def match(self, view: GraphView, anchor: Node) -> Match | Decline | None:
        op = view.op(anchor)
        if not all(is_tensor(op.args.get(n)) for n in ("query", "key", "value")):
            return None
        masked = op.args.get("attn_mask") is not None
        try:
            found = _read(view, anchor, op)
        except Unproven as error:
            return Decline(str(error), anchor) if masked else None
        except GuardOnDataDependentSymNode:
            return Decline(SIZE_OF_DATA, anchor)
        return found


def _read(view: GraphView, anchor: Node, op: Op) -> Match | Decline | None:
    dropout = op.args.get("dropout_p", 0.0)
    if not isinstance(dropout, (int, float)) or dropout != 0:
        return Decline("the call drops probabilities", anchor)
    if value(anchor).dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return Decline(f"it is computed in {str(value(anchor).dtype)[6:]}", anchor)
    out_dims = fresh(value(anchor).shape, "o")
    if len(out_dims) < 3:
        return None
    q, k, v = (op.args[n] for n in ("query", "key", "value"))
    if any(map(is_empty, (anchor, q, k, v))):
        return Decline(EMPTY, anchor)
    keys = fresh((value(k).shape[-2],), "key")[0]
    if not keys:
        return None
    batch, row, features = out_dims[:-2], out_dims[-2], out_dims[-1]
    inner = fresh((value(q).shape[-1],), "inner")[0]
    kv_batch = repeated_heads(batch, value(k).shape[:-2]) if op.args.get("enable_gqa") else batch
    q_dims = (*broadcast(batch, value(q).shape[:-2]), row, inner)
    k_dims = (*broadcast(kv_batch, value(k).shape[:-2]), keys, inner)
    v_dims = (*broadcast(kv_batch, value(v).shape[:-2]), keys, features)
    chains = [peel(view, *pair, anchor) for pair in ((q, q_dims), (k, k_dims), (v, v_dims))]
    if op.args.get("attn_mask") is None and not _repeats(chains[1], k_dims):
        return None
    return _match(view, anchor, op, chains, out_dims, keys, inner, features)


def _repeats(chain: list[tuple[Node, Dims]], dims: Dims) -> bool:
    return len(axes_of(chain)) < len(leaves(dims))


def _match(
    view: GraphView,
    anchor: Node,
    op: Op,
    chains: list[list[tuple[Node, Dims]]],
    out_dims: Dims,
    keys: Any,
    inner: Any,
    features: Any,
) -> Match:
    batch, row = out_dims[:-2], out_dims[-2]
    score_dims = (*batch, row, keys)
    mask = op.args.get("attn_mask")
    mask_dims = broadcast(score_dims, value(mask).shape) if mask is not None else ()
    used = (axes_of(chains[1]) | axes_of(chains[2])) & set(leaves(batch))
    layout = group(resolve(score_dims), keys, used, [mask_dims] if mask is not None else [])
    dtype = value(anchor).dtype
    operands = {
        "q0": operand_from(view, chains[0], layout.queries(leaves((inner,))), dtype),
        "k0": operand_from(view, chains[1], layout.key_values(leaves((inner,))), dtype),
        "v": operand_from(view, chains[2], layout.key_values(leaves((features,))), dtype),
    }
    if mask is not None:
        target = layout.scores() if value(mask).ndim else ()
        operands["c0"] = Operand(mask, resolve(mask_dims), target, read_at=view.order[anchor])
    spec = _spec(op, mask, value(op.args["query"]).shape[-1], dtype, layout, anchor)
    if spec.captured > len(operands) - 3:
        operands[f"c{spec.captured - 1}"] = Operand(op.args["scale"], (), ())
    return Match(
        pattern=NativeAttention.id,
        anchor=anchor,
        nodes=frozenset({anchor}),
        outputs=(anchor,),
        calls=(Call(spec, operands),),
        result=layout.results(leaves((features,))),
        dims=resolve(out_dims),
        facts={"program": spec.score.formula(), "from": "scaled_dot_product_attention"},
        native=True,
    )


def _spec(
    op: Op, mask: Node | None, features: Any, dtype: torch.dtype, layout: Layout, anchor: Node
) -> AttentionSpec:
    if not isinstance(features, int) and op.args.get("scale") is None:
        raise Unproven("the number of features is symbolic and no scale is given")
    scale = op.args.get("scale")
    builder, captured = ProgramBuilder(), 0
    score = builder.input("s0")
    if mask is not None:
        captured += 1
    if isinstance(scale, Node):
        score = builder.call(torch.mul, score, builder.input(f"c{captured}"))
        captured += 1
    else:
        factor = 1 / math.sqrt(features) if scale is None else float(scale)
        score = builder.call(torch.mul, score, factor)
    if mask is not None:
        placed = builder.input("c0")
        if value(mask).dtype is torch.bool:
            keep = builder.call(torch.logical_not, placed)
            score = builder.graph.call_method("masked_fill", (score, keep, -math.inf))
        else:
            score = builder.call(torch.add, score, placed)
    elif op.args.get("is_causal"):
        raise Unproven("a causal call is structured already")
    probs = ProgramBuilder()
    return AttentionSpec(
        contractions=1,
        captured=captured,
        score=builder.finish(score),
        probs=probs.finish(probs.input("p")),
        dtype=dtype,
        score_dtype=dtype,
        softmax_dtype=dtype,
        dead_rows_are_zero=True,
    )
